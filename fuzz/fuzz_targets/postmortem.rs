#![no_main]

#[path = "../../tests/attacks/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::data::postmortem(data));
