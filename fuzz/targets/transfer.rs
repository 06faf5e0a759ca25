#![no_main]
//! See `reveille_fuzz::transfer`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::transfer::run(data));
