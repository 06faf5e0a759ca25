#![no_main]
//! See `reveille_fuzz::question`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::question::run(data));
