//! The exact output of the command line: help texts, listings, explanations, errors.
//! `TRYCMD=overwrite cargo test -p pauc-cli --test cli` records the current output.

#[test]
fn printed_texts_are_as_recorded() {
    trycmd::TestCases::new()
        .case("../tests/cli/*.trycmd")
        .env("COLUMNS", "100")
        .register_bin("pauc-cli", trycmd::cargo::cargo_bin!("pauc-cli"));
}
