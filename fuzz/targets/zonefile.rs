#![no_main]
//! See `reveille_fuzz::zonefile`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::zonefile::run(data));
