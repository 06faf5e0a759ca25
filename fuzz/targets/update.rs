#![no_main]
//! See `reveille_fuzz::update`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::update::run(data));
