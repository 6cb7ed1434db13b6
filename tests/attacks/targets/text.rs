//! Targets that read text: recipes, `--set` assignments, sweeps, components.

use pauc::train::diagnostic::Diagnostics;
use pauc::train::recipe::Recipe;
use pauc::train::recipe_text;
use pauc::train::sweep::Sweep;
use pauc::traits::component_ron::{Configured, Term};
use pauc::traits::{Clusterer, Dataset, backend::PortableEncoder};
use std::path::Path;

/// A valid recipe for targets that change one.
const RECIPE: &str = r#"Recipe(name: "x", /* (c) */ data: Shapes(count: 8), objective: [(term: InfoNce())])"#;

/// Parses a recipe. One that is accepted reads its own resolved text, and has the same hash then; one that is
/// refused can be drawn.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Recipe::parse("fuzz.ron", text, &[]) {
        Err(diagnostics) => assert_placed(&diagnostics),
        Ok((recipe, _)) => {
            let resolved = recipe.resolved().unwrap_or_else(|e| panic!("{e}"));
            let (again, _) =
                Recipe::parse("resolved.ron", &resolved, &[]).unwrap_or_else(|d| panic!("{resolved}\n{d}"));
            assert_eq!(again.hash(), recipe.hash(), "{resolved}");
        }
    }
}

/// Applies the lines as assignments to a recipe, which stays readable.
pub fn set(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let assignments: Vec<String> = text.split('\n').map(String::from).collect();
    match Recipe::parse("fuzz.ron", RECIPE, &assignments) {
        Err(diagnostics) => assert_placed(&diagnostics),
        Ok((_, source)) => assert!(recipe_text::parse(&source.text).is_some(), "{}", source.text),
    }
}

/// Parses a sweep and, if it is a small one, its combinations.
pub fn sweep(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Sweep::parse("fuzz.ron", text) {
        Err(diagnostics) => assert_placed(&diagnostics),
        Ok((sweep, source)) => {
            for point in sweep.points().iter().take(4) {
                let _ = (sweep.set(point), sweep.name(point), sweep.whence(point, &source));
            }
        }
    }
}

/// Parses one component of several kinds, as `term`, `data verify` and `cluster --with` do.
pub fn component(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Term::parse(text);
    let _ = Configured::<dyn Dataset>::parse(text);
    let _ = Configured::<dyn Clusterer>::parse(text);
    let _ = Configured::<dyn PortableEncoder>::parse(text);
}

/// Asserts that each mistake has a known code and lies in the text, and draws it.
fn assert_placed(diagnostics: &Diagnostics) {
    assert!(diagnostics.has_errors());
    for found in &diagnostics.all {
        assert!(pauc::train::codes::find(found.code).is_some(), "{} is not explained", found.code);
        let span = found.span.as_ref().unwrap_or_else(|| panic!("no place: {found:?}"));
        assert!(span.start <= span.end && span.end <= diagnostics.text.len(), "{span:?}: {found:?}");
        assert!(!found.message.is_empty(), "{found:?}");
    }
    // Drawing costs as much as the text is long.
    if diagnostics.text.len() < 10_000 {
        assert!(!diagnostics.render(false).is_empty());
    }
}

/// Returns the files with this ending below a folder of the repository.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."));
    let mut paths: Vec<_> = std::fs::read_dir(root.join(folder))
        .unwrap_or_else(|e| panic!("{folder}: {e}"))
        .map(|entry| entry.unwrap_or_else(|e| panic!("{folder}: {e}")).path())
        .filter(|path| path.extension().is_some_and(|e| e == "ron"))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .collect()
}

/// Shipped recipes.
pub fn recipes() -> Vec<Vec<u8>> {
    [files("recipes"), files("recipes/fashion-mini")].concat()
}

/// Shipped sweeps, and one of each way to combine values.
pub fn sweeps() -> Vec<Vec<u8>> {
    let own = [
        r#"Sweep(recipe: "r.ron", over: [(path: "a[0].b", values: [1, X()]), (path: "c", values: ["(", 2])])"#,
        r#"Sweep(recipe: "r.ron", combine: Zip, set: ["a=1"], seeds: [0, 1], over: [(path: "a", values: [1])])"#,
        r#"Sweep(recipe: "r.ron", combine: Random(runs: 3), over: [(path: "a", values: LogUniform(from: 1e-3, to: 1))])"#,
        r#"Sweep(recipe: "r.ron", combine: Random(runs: 2), over: [(r#path: "a", values: LogUniform(from: 1, to: 0))])"#,
    ];
    files("recipes/sweeps").into_iter().chain(own.map(Vec::from)).collect()
}

/// Assignments.
pub fn assignments() -> Vec<Vec<u8>> {
    let own = [
        "name=\"y\"",
        "objective[0].term.temperature=Linear(from: 0.1, to: 0.2, over: Epochs(1))\nobjective.0.weight=2.0",
        "optimizer.lr=0.5\nschedule.warmup=Steps(3)\ntrain.keep.newest=3",
        "encoder=ConvNet(channels: [8])\nencoder.channels[0]=4",
        "data=Npy(images: r#\"a\"#)",
    ];
    own.map(Vec::from).to_vec()
}

/// Components.
pub fn components() -> Vec<Vec<u8>> {
    let own = [
        "InfoNce(temperature: 0.2, negatives: Queue)",
        "Shapes(count: 8, size: 16)",
        "KMeans(k: [5, 10], start: Epochs(1))",
        "ResNet18(stem: Small, width: 16)",
        "Subset(of: Npy(images: \"x.npy\"), fraction: 0.1)",
    ];
    own.map(Vec::from).to_vec()
}
