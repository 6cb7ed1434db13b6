//! The program on the page "From Rust" is `examples/library.rs`, and its model learns.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

// Like a user's program, this test's crate depends only on `pauc`, not on the internal crates.
#[allow(dead_code)] // its `main`, which prints what `train` returns
#[path = "../examples/library.rs"]
mod library;

#[test]
fn the_example_learns_without_a_recipe_file_or_a_folder() {
    let trained = library::train().unwrap();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (&trained.losses[..10], &trained.losses[trained.losses.len() - 10..]);
    assert!(mean(last) < mean(first), "the loss did not fall: {:?}", trained.losses);
    // With ten classes, guessing gives a tenth.
    assert!(trained.accuracy > 0.5, "a linear probe gives {}", trained.accuracy);
    // The squared norm of a mean of unit rows.
    assert!((0.0..=1.0).contains(&trained.centering), "{}", trained.centering);
}

#[test]
fn the_page_shows_the_example_word_for_word() {
    let read = |path: &str| std::fs::read_to_string(common::root().join(path)).unwrap();
    let page = read("docs/src/library.md");
    let blocks = page.split("```rust,ignore\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let shown = blocks.collect::<Vec<_>>().join("\n");
    let example = read("examples/library.rs");
    // The page's first lines replace the head of the file.
    let code = example.split_once("\n\n").unwrap().1;
    assert_eq!(shown, code, "docs/src/library.md does not show examples/library.rs");
}
