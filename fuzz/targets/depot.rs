#![no_main]
//! See `reveille_fuzz::depot`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::depot::run(data));
