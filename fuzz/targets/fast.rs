#![no_main]
//! See `reveille_fuzz::fast`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::fast::run(data));
