#![no_main]
//! See `reveille_fuzz::framing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::framing::run(data));
