//! What `pauc-cli new term` writes compiles as it is, and its own tests pass.

#[path = "../../pauc-cli/templates/term.rs"]
mod term;

#[test]
fn the_skeleton_registers_its_term() {
    let found = pauc_traits::component_ron::Term::parse("TermSkeleton(temperature: 0.1)").unwrap();
    assert_eq!(found.name(), "TermSkeleton");
    let _ = term::TermSkeleton::FIELDS;
}
