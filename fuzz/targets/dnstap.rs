#![no_main]
//! See `reveille_fuzz::dnstap`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| reveille_fuzz::dnstap::run(data));
