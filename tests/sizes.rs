//! Sizes in recipes are counted before anything is allocated: impossible ones are refused at once, by every
//! verb, with their place.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, pauc};

const RECIPE: &str = r#"Recipe(
    name: "sizes",
    data: Shapes(count: 64, size: 16, classes: 4),
    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    encoder: ConvNet(channels: [8, 8]),
    projector: Mlp(dims: [8]),
    momentum_encoder: Ema(momentum: 0.9),
    objective: [(term: InfoNce())],
    train: (epochs: 1, batch: 16),
)
"#;

fn with(verb: &str, set: &[&str], more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.ron");
    std::fs::write(&path, RECIPE).unwrap();
    let mut args = vec![verb.to_string(), path.display().to_string()];
    args.extend(set.iter().flat_map(|s| ["--set".to_string(), s.to_string()]));
    args.extend(more.iter().map(|m| m.to_string()));
    if verb == "run" {
        args.extend(["--out".to_string(), folder.path().join("runs").display().to_string()]);
    }
    pauc(args)
}

/// Expects `check`, `explain` and `run` to refuse a value with this code and text, at a place in the recipe.
fn refused(set: &[&str], code: &str, says: &str) {
    for verb in ["check", "explain", "run"] {
        let out = with(verb, set, &[]);
        assert_eq!(out.code, 2, "{verb} {set:?}: {}", out.stderr);
        for text in [&format!("error[{code}]"), says, "recipe.ron:"] {
            assert!(out.stderr.contains(text), "{verb} {set:?}: no `{text}` in\n{}", out.stderr);
        }
    }
}

#[test]
fn sizes_beyond_their_bounds() {
    refused(&["projector=Mlp(dims: [1000000000, 128])"], "E0208", "at most 1048576, got 1000000000");
    refused(&["projector=Mlp(dims: [18446744073709551615])"], "E0208", "at most 1048576");
    refused(&["encoder=ConvNet(channels: [1000000000])"], "E0208", "`channels` is at most");
    refused(&["encoder=ResNet18(stem: Small, width: 100000000)"], "E0208", "`width` is at most");
    refused(&["encoder=ResNet50(width: 18446744073709551615)"], "E0208", "`width` is at most");
    refused(&["encoder=MlpEncoder(dims: [1000000000])"], "E0208", "`dims` is at most");
    let next = |depths: &str, widths: &str, patch: &str| {
        format!("encoder=ConvNeXt(size: Custom(depths: [{depths}], widths: [{widths}]), patch: {patch})")
    };
    refused(&[&next("1000000000", "8", "4")], "E0208", "`depths` is at most 4096");
    refused(&[&next("1", "1000000000", "4")], "E0208", "`widths` is at most 1048576");
    refused(&[&next("1", "8, 8", "4")], "E0208", "1 `depths` and 2 `widths`");
    refused(&[&next("1", "8", "18446744073709551615")], "E0208", "no patches of 18446744073709551615");
    refused(&["encoder=WideResNet(depth: 29)"], "E0208", "6n + 4");
    refused(&["encoder=WideResNet(widen: 1000000000)"], "E0208", "`widen` is at most");
    refused(&["encoder=VisionTransformer(depth: 1000000000)"], "E0208", "`depth` is at most 4096");
    refused(&["encoder=VisionTransformer(mlp_ratio: 1000000000)"], "E0208", "`mlp_ratio` is at most 1024");
    refused(&["encoder=VisionTransformer(registers: 1000000000)"], "E0208", "`registers` is at most 4096");
    let views =
        |count: &str, size: &str| format!("views=[(count: {count}, ops: [RandomResizedCrop(size: {size})])]");
    refused(&[&views("1000000000000", "16")], "E0213", "are more than 1024");
    refused(&[&views("18446744073709551615", "16")], "E0213", "are more than 1024");
    refused(&[&views("2", "1000000000")], "E0213", "a side is at most 65536");
    refused(&["data=Shapes(size: 1000000)"], "E0214", "size is from 8 to 1024");
    refused(&["data=Shapes(count: 1000000000000)"], "E0214", "count is at most");
    let op = |op: &str| format!("views=[(count: 2, ops: [{op}, CenterCrop(size: 16)])]");
    refused(&[&op("Resize(size: 1000000000)")], "E0213", "a side is at most 65536");
    refused(&[&op("Resize(size: 18446744073709551615, crop: false)")], "E0213", "a side is at most 65536");
    refused(&[&op("RandomCrop(size: 16, padding: 18446744073709551615)")], "E0213", "padding is at most");
    refused(&[&op("GaussianBlur(sigma: (1e9, 1e9))")], "E0213", "sigma is at most 1024");
}

#[test]
fn sizes_beyond_the_memory() {
    let needs = "needs at least";
    refused(&["data=Shapes(count: 1000000, size: 1024)"], "E0214", "the images need 3600000.0 MiB");
    refused(&["projector=Mlp(dims: [1000000, 1000000])"], "E0222", needs);
    refused(&["encoder=ConvNet(channels: [1000000, 1000000])"], "E0222", needs);
    refused(&["encoder=ResNet18(stem: Small, width: 1000000)"], "E0222", needs);
    refused(&["encoder=MlpEncoder(dims: [1000000, 1000000])"], "E0222", needs);
    refused(&["encoder=ConvNeXt(size: Custom(depths: [4096], widths: [1000000]))"], "E0222", needs);
    refused(&["encoder=WideResNet(widen: 10000)"], "E0222", needs);
    refused(
        &["encoder=VisionTransformer(size: Custom(width: 1000000, heads: 1), depth: 4096)"],
        "E0222",
        needs,
    );
    // A million tokens of the second view attend to each other.
    let crops = "views=[(count: 2, ops: [RandomResizedCrop(size: 16)]), (count: 1, ops: [RandomResizedCrop(size: 1000)])]";
    refused(&["encoder=VisionTransformer(patch: 1)", crops], "E0222", "activations of the encoder");
    refused(&["queue=1000000000000"], "E0222", "keys in the queue");
    refused(&["queue=18446744073709551615"], "E0222", "512.0 EiB");
    refused(
        &["objective=[(term: SwappedAssignment(prototypes: 1000000000000))]"],
        "E0222",
        "matrices that terms learn",
    );
    refused(
        &["objective=[(term: SelfDistillation(prototypes: 1000000000000))]"],
        "E0222",
        "matrices that terms learn",
    );
    refused(
        &["views=[(count: 2, ops: [RandomResizedCrop(size: 60000)])]"],
        "E0222",
        "activations of the encoder",
    );
}

#[test]
fn the_limit_can_be_set() {
    let out = with("check", &[], &["--memory", "100KB"]);
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.contains("but there are 97.7 KiB"), "{}", out.stderr);
    assert_eq!(with("check", &[], &["--memory", "1GiB"]).code, 0);
    let out = with("check", &[], &["--memory", "10apples"]);
    assert!(out.code == 2 && out.stderr.contains("such as 8GiB or 500MB"), "{}", out.stderr);
}

#[test]
fn explain_prints_the_parts() {
    let out = with("explain", &["queue=32"], &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    for text in
        ["memory     at least ", "keys in the queue", "activations of the encoder", "views of a batch"]
    {
        assert!(out.stdout.contains(text), "no `{text}` in\n{}", out.stdout);
    }
}

/// Returns the bytes that `explain` announces for the recipe with these changes, and the most that its run takes.
#[cfg(target_os = "linux")]
fn announced_and_taken(set: &[&str]) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.ron");
    std::fs::write(&recipe, RECIPE).unwrap();
    let (recipe, out) = (recipe.to_str().unwrap(), folder.path().join("runs"));
    let set = ["baselines=[]", "probes=[]"].iter().chain(set).flat_map(|s| ["--set", s]);
    let explained = pauc(["explain", recipe].into_iter().chain(set.clone()));
    let announced = explained.stdout.lines().find_map(|line| line.strip_prefix("memory     at least "));
    let announced = announced.unwrap_or_else(|| panic!("{explained:?}"));
    let ran = pauc(["--threads", "2", "run", recipe, "--out", out.to_str().unwrap()].into_iter().chain(set));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let metrics = std::fs::read_to_string(common::only_run(&out).join("metrics.jsonl")).unwrap();
    let taken = metrics.lines().filter_map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["peak_memory_bytes"].as_f64()
    });
    (pauc::train::memory::parse_bytes(announced).unwrap() as f64, taken.fold(0.0, f64::max))
}

/// The page on reliability gives these bounds.
#[cfg(target_os = "linux")]
#[test]
fn the_estimate_is_a_lower_bound_and_not_far_from_the_peak() {
    let (_, small) = announced_and_taken(&["momentum_encoder=None"]);
    for (what, set, most) in [
        ("parameters", &["encoder=MlpEncoder(dims: [2048, 2048])", "momentum_encoder=None"][..], 3.0),
        ("the queue", &["queue=262144", "projector=Mlp(dims: [64])"], 3.0),
        (
            "activations",
            &[
                "encoder=ConvNet(channels: [32, 64])",
                "views=[(count: 2, ops: [RandomResizedCrop(size: 64)])]",
            ],
            15.0,
        ),
        (
            "matrices of terms",
            &["objective=[(term: SwappedAssignment(prototypes: 50000))]", "projector=Mlp(dims: [64])"],
            15.0,
        ),
    ] {
        let (announced, taken) = announced_and_taken(set);
        println!("{what}: announced {announced}, taken {taken}, of which {small} by any run");
        assert!(announced <= taken, "{what}: {announced} announced, {taken} taken");
        assert!(taken - small <= most * announced, "{what}: {announced} announced, {taken} taken");
    }
}

#[test]
fn sizes_that_training_could_not_work_with() {
    let normed = "projector=Mlp(dims: [8, 8], batch_norm: true)";
    refused(&["train.batch=1", normed], "E0217", "at least 2 images at a time");
    refused(&["train.micro_batch=1", normed], "E0217", "at least 2 images at a time");
    refused(&["train.batch=16", "train.shards=16", normed], "E0217", "make them at most 8");
    let prototypes = "objective=[(term: InfoNce()), (term: ProtoNce())]";
    refused(&["clusterer=KMeans(k: [])", prototypes], "E0205", "the list `k` is empty");
}

#[test]
fn more_clusters_than_images_are_refused() {
    refused(&["probes=[Clusters(k: 1000000000000)]"], "E0221", "1000000000000 clusters of");
}

#[test]
fn images_between_steps_of_a_view_are_counted() {
    let views = "views=[(count: 2, ops: [Resize(size: 60000), RandomResizedCrop(size: 28)])]";
    let out = with("check", &[views, "train.batch=2"], &["--memory", "1GiB"]);
    assert_eq!(out.code, 2, "{}", out.stderr);
    for text in ["error[E0222]", "10.1 GiB: images between two steps of a view"] {
        assert!(out.stderr.contains(text), "no {text:?} in {}", out.stderr);
    }
}

#[test]
fn more_steps_than_can_be_counted_are_refused() {
    refused(&["train.epochs=9223372036854775808"], "E0223", "18446744073709551615 steps");
    refused(&["train.batch=18446744073709551615"], "E0207", "larger than the training set");
    refused(&["train.accumulate=18446744073709551615"], "E0207", "more than the training set");
}

#[test]
fn a_probe_with_too_few_images_is_left_out_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let set = [
        "data=Shapes(count: 24, size: 16, classes: 8)",
        "views=[(count: 2, ops: [RandomResizedCrop(size: 16)])]",
        "encoder=ConvNet(channels: [4])",
        "projector=Mlp(dims: [4])",
        "objective=[(term: InfoNce())]",
        "clusterer=None",
        "momentum_encoder=None",
        "queue=None",
        "baselines=[]",
        "train=(epochs: 1, batch: 16)",
        "probes=[Clusters(), Rank()]",
    ];
    let set = set.iter().flat_map(|s| ["--set", s]);
    let recipe = "recipes/quickstart.ron";
    let checked = pauc(["check", recipe].into_iter().chain(set.clone()));
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    let said = checked.stdout + &checked.stderr;
    assert!(said.contains("E0224") && said.contains("8 clusters of"), "{said}");
    let ran = pauc(["run", recipe, "--out", out].into_iter().chain(set));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let metrics = std::fs::read_to_string(common::only_run(folder.path()).join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("`Clusters` measured nothing"), "{metrics}");
    assert!(metrics.contains("rankme/") && !metrics.contains("kmeans/"), "{metrics}");
}
