//! What the command line prints: help texts, listings, explanations, exactly as a user sees them.
//! `TRYCMD=overwrite cargo test -p pauc-cli --test cli` writes what is printed now.

#[test]
fn printed_texts_are_as_recorded() {
    trycmd::TestCases::new()
        .case("../tests/cli/*.trycmd")
        .env("COLUMNS", "100")
        .register_bin("pauc-cli", trycmd::cargo::cargo_bin!("pauc-cli"));
}
