//! The binary lists, explains and trains with the components of this crate.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

use std::process::Command;

fn output(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_pauc-plugin-example"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn the_binary_knows_components_from_outside() {
    let (code, listed, _) = output(&["list"]);
    assert_eq!(code, 0);
    for name in ["Triplet", "RandomPartition", "GridMean", "InfoNce"] {
        assert!(listed.contains(&format!("  {name} ")), "{name} is not in\n{listed}");
    }
    let (_, explained, _) = output(&["explain", "Triplet"]);
    assert!(explained.contains("contrastive loss of pauc-plugin-example"), "{explained}");
    assert!(explained.contains("default 0.2"), "{explained}");
}

#[test]
fn a_recipe_trains_with_them() {
    let out = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) =
        output(&["run", "recipe.ron", "--json", "--out", out.path().to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let accuracy = stdout.split("\"knn/").nth(1).and_then(|t| t.split(':').nth(1)).unwrap();
    let accuracy: f64 = accuracy.split(['}', ',']).next().unwrap().trim().parse().unwrap();
    assert!(accuracy > 0.5, "ten classes, kNN {accuracy}: {stdout}");
    assert!(stderr.contains("phase prototypes; terms: Triplet, ProtoNce"), "{stderr}");
}
