//! Helpers that the tests of training share.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

use dfdx::prelude::Cpu;
use pauc_train::plan::Plan;
use pauc_train::recipe::Recipe;
use pauc_traits::dataset::Place;

/// Returns the plan of a recipe with some of its values changed.
pub fn plan(text: &str, set: &[&str]) -> Plan {
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    let (recipe, source) =
        Recipe::parse("test", text, &set).unwrap_or_else(|e| panic!("{}", e.render(false)));
    Plan::new(&Cpu::default(), recipe, source, &Place::at(".")).unwrap_or_else(|e| panic!("{e}"))
}
