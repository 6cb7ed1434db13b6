//! Every verb's help has an example, and the examples do what they say, on small data.
#![cfg(unix)] // the examples are a shell's lines
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::pauc;
use std::path::Path;
use std::process::Command;

/// The verbs that a help text lists, under `Commands:` or in groups: lines with the name of one and what it does.
fn verbs(help: &str) -> Vec<String> {
    let names = help.lines().filter_map(|line| line.strip_prefix("  "));
    let names = names.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(String::from).collect()
}

/// The examples of a verb and of the verbs below it, each with the verb.
fn examples(verb: &[String], found: &mut Vec<(String, String)>) {
    let help = pauc(verb.iter().map(String::as_str).chain(["--help"]));
    assert_eq!(help.code, 0, "{verb:?}: {}", help.stderr);
    let below = verbs(&help.stdout);
    // Lines that were broken to fit the terminal are joined; an empty line ends an example.
    let paragraphs = help.stdout.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let lists = paragraphs.filter_map(|p| {
        let text = p.strip_prefix("Example: ").or(p.strip_prefix("Examples: "))?;
        Some(text.split("; ").map(String::from).collect::<Vec<_>>())
    });
    let own: Vec<String> = lists.flatten().collect();
    assert!(!own.is_empty() || !below.is_empty(), "the help of {verb:?} has no example:\n{}", help.stdout);
    assert!(own.iter().all(|e| e.starts_with("pauc-cli ")), "{own:?}");
    found.extend(own.into_iter().map(|e| (verb.join(" "), e)));
    for name in below {
        examples(&[verb, &[name]].concat(), found);
    }
}

fn recipe(name: &str) -> String {
    // Recipes that differ in nothing but their name are one to `compare`.
    let rate = if name == "pcl" { 0.02 } else { 0.06 };
    format!(
        r#"Recipe(version: 1, name: "{name}", data: Shapes(count: 96, size: 16, classes: 4),
    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    encoder: ConvNet(channels: [4, 8], grid: 1), projector: Mlp(dims: [6]),
    objective: [(term: InfoNce(temperature: 0.2))], optimizer: Sgd(lr: {rate}),
    train: (epochs: 1, batch: 24), probes: [Knn(k: 5)])"#
    )
}

/// Recipes, runs, photographs and tensors under the names that the examples use.
fn prepare(at: &Path) {
    let write = |name: &str, content: &[u8]| {
        let path = at.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for (file, name) in [
        ("recipe.ron", "own"),
        ("recipes/quickstart.ron", "quickstart"),
        ("recipes/fashion-mini/simclr.ron", "simclr"),
        ("recipes/fashion-mini/pcl.ron", "pcl"),
    ] {
        write(file, recipe(name).as_bytes());
    }
    let sweep =
        r#"Sweep(recipe: "../fashion-mini/simclr.ron", over: [(path: "optimizer.lr", values: [0.05, 0.1])])"#;
    write("recipes/sweeps/temperature.ron", sweep.as_bytes());
    for (file, name, to) in [
        ("recipes/quickstart.ron", "quickstart", "quickstart-0a1b2c3d"),
        ("recipes/fashion-mini/simclr.ron", "simclr", "simclr-0a1b2c3d"),
        ("recipes/fashion-mini/pcl.ron", "pcl", "pcl-4e5f6a7b"),
    ] {
        let (file, out) = (at.join(file).display().to_string(), at.join("made").display().to_string());
        let done = pauc(["run", &file, "--out", &out]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let made = std::fs::read_dir(at.join("made")).unwrap().map(|e| e.unwrap().path());
        let run =
            made.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with(name)).unwrap();
        std::fs::create_dir_all(at.join("runs")).unwrap();
        std::fs::rename(run, at.join("runs").join(to)).unwrap();
    }
    // CIFAR-10's binary version: a label, then 3072 values.
    let images = |n: u8| {
        (0..n).flat_map(|i| [vec![i % 10], vec![i.wrapping_mul(7); 3072]].concat()).collect::<Vec<u8>>()
    };
    write("data/cifar10/data_batch_1.bin", &images(20));
    write("data/cifar10/test_batch.bin", &images(10));
    for i in 0..4u32 {
        // A bitmap of 16 × 16 pixels.
        let mut image = b"BM".to_vec();
        for v in [54 + 768u32, 0, 54, 40, 16, 16, 1 | 24 << 16, 0, 768, 0, 0, 0, 0] {
            image.extend(v.to_le_bytes());
        }
        image.extend((0..768u32).map(|p| ((p * (i + 1)) % 251) as u8));
        write(&format!("photos/{i}.bmp"), &image);
    }
    let value = |i: u32| (f64::from(i) * 1.7).sin() as f32;
    let features: Vec<f32> = (0..800).map(value).collect();
    write("features.npy", &pauc_testing::npy::floats("(200, 4)", &features));
    let labels: Vec<u8> = (0..200i64).flat_map(|i| (i % 5).to_le_bytes()).collect();
    write("labels.npy", &pauc_testing::npy::file("<i8", false, "(200,)", &labels));
    let view = |from: u32| (from..from + 32).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>();
    let (first, second) = (view(0), view(50));
    let tensor =
        |bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8, 4], bytes).unwrap();
    let file = safetensors::serialize([("view0", tensor(&first)), ("view1", tensor(&second))], None).unwrap();
    write("batch.safetensors", &file);
    std::fs::create_dir(at.join("src")).unwrap();
}

#[test]
fn examples_of_the_help_run() {
    let mut all = Vec::new();
    examples(&[], &mut all);
    assert!(all.len() >= 20, "{all:?}");
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let program = Path::new(env!("CARGO_BIN_EXE_pauc-cli"));
    let mut run = 0;
    for (verb, example) in all {
        if verb == "data fetch" {
            continue; // needs the network, and a binary with the feature
        }
        let mut line = example.replace("/etc/bash_completion.d/", "");
        if verb.starts_with("bench") {
            line += " --seconds 0.05";
        }
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let done = Command::new("sh")
            .args(["-c", &line])
            .current_dir(folder.path())
            .env("PATH", path)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "`{line}` of `{verb} --help`: {}\n{stderr}", done.status);
        run += 1;
    }
    assert!(run >= 20, "only {run} examples");
}
