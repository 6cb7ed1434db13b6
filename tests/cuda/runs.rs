//! Runs of the binary.

use crate::common;
use crate::common::jobs::{on, output};
use pauc_testing::assert_within;
use pauc_testing::mpi::Launcher;
use std::path::Path;

/// The arguments that train a shortened recipe.
fn arguments(recipe: &Path, device: &str, more: &[&str], out: &Path) -> Vec<String> {
    let mut args = vec!["run".to_string(), recipe.display().to_string()];
    args.extend(common::short_form(recipe));
    let shorter = [
        "data=Shapes(count: 48, size: 28, classes: 4)",
        "train=(epochs: 2, batch: 16, log_every: 1)",
        "probes=[]",
    ];
    let more = more.iter().copied().map(String::from);
    args.extend(shorter.into_iter().flat_map(|s| ["--set".to_string(), s.to_string()]).chain(more));
    args.extend(["--device", device, "--out", out.to_str().unwrap()].map(String::from));
    args
}

/// Runs the binary on a shortened recipe; returns the run's folder and the losses of its steps.
fn run(recipe: &Path, device: &str, more: &[&str]) -> (tempfile::TempDir, Vec<f64>) {
    let out = tempfile::tempdir().unwrap();
    let output = common::pauc(arguments(recipe, device, more, out.path()));
    assert_eq!(output.code, 0, "{}: {}", recipe.display(), output.stderr);
    let losses = losses(&common::only_run(out.path()));
    (out, losses)
}

fn losses(run: &Path) -> Vec<f64> {
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
    let last = |dir: &Path| std::fs::read(dir.join("checkpoints/last.safetensors")).unwrap();
    assert!(last(&folder) == last(&common::only_run(whole.path())), "checkpoints differ");
}

/// The number of GPUs that the emulator shows.
const TWO: [(&str, &str); 1] = [("PAUC_EMULATED_DEVICES", "2")];

fn is_emulated() -> bool {
    pauc::cuda::gpus().unwrap()[0].name == "emulated"
}

#[test]
fn ranks_train_on_a_gpu_each_to_the_bits_of_one_process() {
    let launchers = Launcher::all("ranks_train_on_a_gpu_each_to_the_bits_of_one_process");
    let Some(launcher) = launchers.first() else { return };
    let set = ["--set", "train.shards=4", "--set", "train.cuda=(deterministic: true)"];
    let (alone, expected) = run(&recipe("pauc"), "cuda:0", &set);
    let aside = tempfile::tempdir().unwrap();
    let last = |dir: &Path| std::fs::read(dir.join("checkpoints/last.safetensors")).unwrap();
    for (ranks, then) in [(2, 4), (4, 1)] {
        let out = tempfile::tempdir().unwrap();
        let args =
            arguments(&recipe("pauc"), "cuda", &[&set[..], &["--max-steps", "4"]].concat(), out.path());
        // Ranks that have a GPU each send their gradients from GPU to GPU.
        let connected = aside.path().join(format!("connected{ranks}"));
        let begun = output(on(launcher, ranks, args).envs(TWO).env("PAUC_EMULATED_NCCL_LOG", &connected));
        assert_eq!(begun.code, 0, "{}", begun.stderr);
        let shares = begun.stderr.contains("warning: 4 ranks share ");
        assert!(shares || ranks == 2, "{}", begun.stderr);
        let connected = std::fs::read_to_string(connected).unwrap_or_default();
        assert!(ranks > 2 || !is_emulated() || connected.lines().count() == 2, "{connected}");
        assert!(ranks == 2 || connected.is_empty(), "ranks that share a GPU: {connected}");
        let folder = common::only_run(out.path());
        assert_eq!(losses(&folder), expected[..4]);
        let resumed = output(on(launcher, then, ["resume", folder.to_str().unwrap()]).envs(TWO));
        assert_eq!(resumed.code, 0, "{}", resumed.stderr);
        assert_eq!(losses(&folder), expected);
        assert!(last(&folder) == last(&common::only_run(alone.path())), "{ranks} ranks: checkpoints differ");
    }
}

#[test]
fn ranks_embed_on_a_gpu_each() {
    let launchers = Launcher::all("ranks_embed_on_a_gpu_each");
    let Some(launcher) = launchers.first() else { return };
    let (runs, _) = run(&recipe("pauc"), "cuda:0", &[]);
    let (run, aside) = (common::only_run(runs.path()), tempfile::tempdir().unwrap());
    let embed = |name: &str, device| {
        let file = aside.path().join(name).to_str().unwrap().to_string();
        let args = ["embed", run.to_str().unwrap(), "--out", &file, "--device", device].map(String::from);
        (file, args)
    };
    let ((whole, args), (shared, args_of_ranks)) =
        (embed("whole.csv", "cuda:0"), embed("shared.csv", "cuda"));
    assert_eq!(common::pauc(args).code, 0);
    let embedded = output(on(launcher, 2, args_of_ranks).envs(TWO));
    assert_eq!(embedded.code, 0, "{}", embedded.stderr);
    assert!(std::fs::read(whole).unwrap() == std::fs::read(shared).unwrap(), "embeddings differ");
}

#[test]
fn statistics_of_all_shards_are_refused_on_a_gpu() {
    let refused = ["--set", "train.shards=4", "--set", "train.batch_norm=Synced"];
    let out = tempfile::tempdir().unwrap();
    let output = common::pauc(arguments(&recipe("pauc"), "cuda:0", &refused, out.path()));
    assert!(
        output.code != 0 && output.stderr.contains("leave `batch_norm: Synced` out"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_sweep_spreads_its_runs_over_devices() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let text =
        format!("Sweep(recipe: {:?}, over: [(path: \"optimizer.lr\", values: [0.1, 0.2])])", recipe("pauc"));
    std::fs::write(at("sweep.ron"), text).unwrap();
    let mut args = arguments(&recipe("pauc"), "cuda:0,cuda:1", &["--jobs", "2"], &folder.path().join("runs"));
    args.splice(..2, ["sweep".into(), at("sweep.ron")]);
    let output = common::pauc_with(&TWO, &args);
    if output.stderr.contains("there is no GPU 1") {
        return eprintln!("SKIPPED: there is a single GPU");
    }
    assert_eq!(output.code, 0, "{}", output.stderr);
    let mut devices = Vec::new();
    for recipe in std::fs::read_dir(at("runs")).unwrap() {
        let info = std::fs::read_to_string(recipe.unwrap().path().join("seed0/run.json")).unwrap();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        devices.push(info["device"].as_str().unwrap().to_string());
    }
    devices.sort();
    assert_eq!(devices, ["cuda:0", "cuda:1"]);
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
