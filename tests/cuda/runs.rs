//! Runs of the binary.

use crate::common;
use pauc_testing::assert_within;

/// Runs the binary on a shortened recipe; returns the run's folder and the losses of its steps.
fn run(recipe: &std::path::Path, device: &str, more: &[&str]) -> (tempfile::TempDir, Vec<f64>) {
    let out = tempfile::tempdir().unwrap();
    let mut args = vec!["run".to_string(), recipe.display().to_string()];
    args.extend(common::short_form(recipe));
    let shorter = [
        "data=Shapes(count: 48, size: 28, classes: 4)",
        "train=(epochs: 2, batch: 16, log_every: 1)",
        "probes=[]",
    ];
    let more = more.iter().copied().map(String::from);
    args.extend(shorter.into_iter().flat_map(|s| ["--set".to_string(), s.to_string()]).chain(more));
    args.extend(["--device", device, "--out", out.path().to_str().unwrap()].map(String::from));
    let output = common::pauc(args);
    assert_eq!(output.code, 0, "{}: {}", recipe.display(), output.stderr);
    let losses = losses(&common::only_run(out.path()));
    (out, losses)
}

fn losses(run: &std::path::Path) -> Vec<f64> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let events = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    events.filter_map(|e| e["loss"].as_f64().or_else(|| e["step"]["loss"].as_f64())).collect()
}

fn recipe(name: &str) -> std::path::PathBuf {
    common::recipes().into_iter().find(|r| r.file_stem().is_some_and(|s| s == name)).unwrap()
}

/// The effect of rounding on the first losses. Six deviations move the embeddings of such a network by 4·10⁻⁵
/// of their length, as the steps of a `ConvNet` in `networks` show, and likewise queries and keys, whose
/// product is divided by the temperature of 0.2. A loss is the mean over 16 samples, which are nearly
/// independent.
const FIRST: f64 = 2.0 * 4e-5 / 0.2 / 4.0;

#[test]
fn shipped_recipes_run_as_on_the_cpu() {
    for name in ["pauc"] {
        let exactly = ["--set", "train.cuda.precision=F32"];
        let of = |device| run(&recipe(name), device, &exactly);
        let ((dir, cuda), (_, cpu)) = (of("cuda:0"), of("cpu"));
        let info = std::fs::read_to_string(common::only_run(dir.path()).join("run.json")).unwrap();
        assert!(info.contains("cuda:0"), "{info}");
        assert!(cuda.len() == cpu.len() && cuda.len() == 6, "{cuda:?} {cpu:?}");
        // Rounding errors grow from step to step. The first losses agree to rounding; later ones may differ,
        // but must stay close.
        for (n, (got, want)) in cuda.iter().zip(&cpu).enumerate() {
            let limit = if n < 2 { FIRST } else { 0.05 * want.abs() };
            assert_within!(*got, *want, limit, "{name}, step {n}");
        }
    }
}

#[test]
fn a_deterministic_run_repeats_and_resumes_bit_by_bit() {
    let set = ["--set", "train.cuda=(deterministic: true)"];
    let (whole, losses_of_whole) = run(&recipe("pauc"), "cuda:0", &set);
    let (parts, first) = run(&recipe("pauc"), "cuda:0", &[&set[..], &["--max-steps", "4"]].concat());
    assert_eq!(first, losses_of_whole[..4]);
    let folder = common::only_run(parts.path());
    let output = common::pauc(["resume", folder.to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(losses(&folder), losses_of_whole);
    let last = |dir: &std::path::Path| std::fs::read(dir.join("checkpoints/last.safetensors")).unwrap();
    assert!(last(&folder) == last(&common::only_run(whole.path())), "checkpoints differ");
}

#[test]
fn stages_are_timed_by_the_device() {
    let encoder = "ConvNet(channels: [4])";
    let args = ["bench", "--device", "cuda:0", "--encoder", encoder, "--batch", "4", "--size", "8"];
    let output = common::pauc(args.into_iter().chain(["--seconds", "0.1", "--json"]));
    assert_eq!(output.code, 0, "{}", output.stderr);
    let found: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert!(found["device"] == "cuda:0" && found["product_gflops"].as_f64().unwrap() > 0.0, "{found}");
    for stage in ["forward", "forward/conv1", "terms", "backward", "optimizer"] {
        assert!(found["stage_ms"][stage].as_f64().unwrap() > 0.0, "{stage}: {found}");
    }
}

#[test]
fn a_missing_device_is_reported_in_one_line_with_exit_code_1() {
    let output = common::pauc(["run", "recipes/quickstart.ron", "--device", "cuda:63"]);
    assert_eq!(output.code, 1);
    assert!(
        output.stderr.starts_with("error: there is no GPU 63") && output.stderr.lines().count() == 1,
        "{}",
        output.stderr
    );
    let without = [("LD_LIBRARY_PATH", ""), ("CUDA_VISIBLE_DEVICES", "")];
    let output = common::pauc_with(&without, ["run", "recipes/quickstart.ron", "--device", "cuda"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.starts_with("error: ") && output.stderr.lines().count() == 1, "{}", output.stderr);
    let output = common::pauc_with(&without, ["devices"]);
    assert!(output.code == 1 && output.stdout.contains("\nno CUDA: "), "{}", output.stdout);
    let output = common::pauc(["devices"]);
    assert!(output.code == 0 && output.stdout.contains("cuda:0"), "{}", output.stdout);
}
