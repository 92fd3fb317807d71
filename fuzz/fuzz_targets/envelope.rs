#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepass_fuzz::fuzzing::envelope(input));
