//! Invalid input: each mistake gives its code, its position, a remedy and the right exit code, without a
//! panic.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{pauc, pauc_with};
use std::path::Path;

const GOOD: &str = r#"Recipe(
    name: "errors",
    data: Shapes(count: 64, size: 16, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    encoder: ConvNet(channels: [8, 8]),
    projector: Mlp(dims: [8]),
    momentum_encoder: Ema(momentum: 0.9),
    queue: 32,
    clusterer: KMeans(k: [4], start: Epochs(1)),
    objective: [
        (term: InfoNce(temperature: 0.2, negatives: Queue)),
        (term: ProtoNce(), weight: 0.5),
    ],
    train: (epochs: 2, batch: 16),
)
"#;

fn check(text: &str, verb: &str) -> common::Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.ron");
    std::fs::write(&path, text).unwrap();
    let mut args = vec![verb.to_string(), path.display().to_string()];
    if verb == "run" {
        args.extend(["--out".to_string(), folder.path().join("runs").display().to_string()]);
    }
    let out = pauc(args);
    assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    out
}

/// Replaces `from` by `to` in the valid recipe; expects the code and every text of `says`.
fn refused(from: &str, to: &str, code: &str, says: &[&str]) {
    assert!(GOOD.contains(from), "{from} is not in the recipe");
    let out = check(&GOOD.replace(from, to), "check");
    let to: String = to.chars().take(200).collect();
    assert_eq!(out.code, 2, "{to}: {}", out.stderr);
    assert!(out.stderr.contains(&format!("error[{code}]")), "{to}: no {code} in\n{}", out.stderr);
    for text in says {
        assert!(out.stderr.contains(text), "{to}: no `{text}` in\n{}", out.stderr);
    }
    let explained = pauc(["explain", code]);
    assert!(explained.stdout.starts_with(&format!("{code}: ")), "{code} is not explained");
}

#[test]
fn the_recipe_itself_is_valid() {
    let out = check(GOOD, "check");
    assert_eq!(out.code, 0, "{}", out.stderr);
}

#[test]
fn text_names_and_values() {
    refused("name: \"errors\",", "name: \"errors\"", "E0101", &["recipe.ron:3:", "comma"]);
    refused(
        "InfoNce(temp",
        "InfoNse(temp",
        "E0102",
        &["recipe.ron:11:16", "did you mean `InfoNce`?", "known: "],
    );
    refused("KMeans(k", "Kmeans(k", "E0102", &["did you mean `KMeans`?"]);
    refused(
        "temperature: 0.2",
        "temperture: 0.2",
        "E0103",
        &["recipe.ron:11:24", "did you mean `temperature`?"],
    );
    refused("queue: 32", "quue: 32", "E0103", &["recipe.ron:8:5", "did you mean `queue`?"]);
    refused("KMeans(k: [4], ", "Dbscan(", "E0104", &["`Dbscan` needs the field `radius`"]);
    refused("queue: 32,", "queue: 32, queue: 32,", "E0105", &["given twice"]);
    refused(
        "temperature: 0.2",
        "temperature: -1.0",
        "E0106",
        &["recipe.ron:11:37", "^^^^", "greater than 0, got -1"],
    );
    refused("momentum: 0.9", "momentum: 1.5", "E0106", &["between 0 and 1, got 1.5"]);
    refused("k: [4]", "k: 4", "E0106", &["expected a list, such as `[1, 2]`"]);
    refused("batch: 16", "batch: 0", "E0106", &["at least 1, got 0"]);
    refused("epochs: 2", "epochs: \"two\"", "E0106", &["recipe.ron:14:21", "found \"two\""]);
    refused("ProtoNce()", "ProtoNce", "E0101", &["write `Name()`"]);
    let says = ["expected true or false, found Epochs(1)", "recipe.ron:14:51"];
    refused("batch: 16", "batch: 16, term_gradients: Epochs(1)", "E0106", &says);
    refused("name: \"errors\"", "name: \"../x\"", "E0106", &["letters, digits"]);
    refused("name: \"errors\"", "version: 2, name: \"errors\"", "E0106", &["must be 1"]);
}

#[test]
fn the_form_of_the_text() {
    let nested = format!("temperature: {}", "[".repeat(60_000));
    refused("temperature: 0.2", &nested, "E0101", &["recipe.ron:11:", "more than 128 deep"]);
    let says = ["`-1` is out of range", "at least 0", "recipe.ron:14:41"];
    refused("batch: 16", "batch: 16, seed: -1", "E0106", &says);
    let too_large = "18446744073709551616";
    refused(
        "batch: 16",
        &format!("batch: 16, seed: {too_large}"),
        "E0106",
        &[too_large, "at most 18446744073709551615", &"^".repeat(too_large.len())],
    );
    let empty = check("", "check");
    assert!(empty.code == 2 && empty.stderr.contains("the text is empty"), "{}", empty.stderr);
    let marked = check(&format!("\u{feff}{GOOD}"), "check");
    assert_eq!(marked.code, 0, "{}", marked.stderr);
}

#[test]
fn brackets_without_end_do_not_overflow_the_stack() {
    for open in ["(", "[", "Some(", "Recipe(", "a:("] {
        let out = check(&open.repeat(100_000), "check");
        assert_eq!(out.code, 2, "{open}");
        assert!(out.stderr.contains("recipe.ron:1:"), "{open}: no place in {}", &out.stderr[..200]);
    }
}

#[test]
fn many_mistakes_take_linear_time_and_few_lines() {
    let parts: Vec<String> = (0..20_000).map(|i| format!("\"nowhere{i}\"")).collect();
    let frozen = format!("frozen: [{}], queue: 32", parts.join(", "));
    let out = check(&GOOD.replace("queue: 32", &frozen), "check");
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains("… and 19900 more"), "{}", &out.stderr[out.stderr.len() - 300..]);
    assert!(out.stderr.contains("20000 errors"));
}

#[test]
fn a_file_that_is_not_text_does_not_hide_the_other_recipes() {
    let folder = tempfile::tempdir().unwrap();
    let (bad, good) = (folder.path().join("bad.ron"), folder.path().join("good.ron"));
    std::fs::write(&bad, b"Recipe(\n\xff").unwrap();
    std::fs::write(&good, GOOD).unwrap();
    let args = ["check", "--json", bad.to_str().unwrap(), good.to_str().unwrap()];
    let out = pauc(args);
    assert_eq!(out.code, 2, "{}", out.stderr);
    let results: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(results[0]["diagnostics"][0]["code"], "E0108");
    let message = results[0]["diagnostics"][0]["message"].as_str().unwrap();
    assert!(message.contains("line 2 is not UTF-8: byte 0xff at offset 8"), "{message}");
    assert_eq!(results[1]["ok"], true);
}

#[test]
fn a_field_of_a_default_component_can_be_set() {
    let resolved = |assignment: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.ron");
        std::fs::write(&path, GOOD).unwrap();
        let out = pauc(["explain", path.to_str().unwrap(), "--set", assignment]);
        assert_eq!(out.code, 0, "{assignment}: {}", out.stderr);
        out.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(resolved("optimizer.lr=0.5").contains("optimizer: Sgd( lr: 0.5, momentum: 0.9,"));
    assert!(resolved("schedule.warmup=Epochs(2)").contains("schedule: WarmupCosine( warmup: Epochs(2.0),"));
    // A clustering that never comes; its step times the steps of an epoch would overflow.
    let never = resolved("clusterer.start=Steps(18446744073709551615)");
    assert!(never.contains("from step 18446744073709551615"), "{never}");
}

#[test]
fn an_item_of_a_default_list_can_be_set() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.ron");
    let views = "    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],\n";
    assert!(GOOD.contains(views));
    std::fs::write(&path, GOOD.replace(views, "")).unwrap();
    let out = pauc(["explain", path.to_str().unwrap(), "--set", "views[0].count=3"]);
    assert!(out.code == 0 && out.stdout.contains("count: 3"), "{}{}", out.stdout, out.stderr);
}

#[test]
fn options_of_a_vision_transformer_out_of_range() {
    let refused = |option: &str, value: &str, says: &str| {
        let text =
            GOOD.replace("ConvNet(channels: [8, 8])", &format!("VisionTransformer({option}: {value})"));
        let out = check(&text, "check");
        assert_eq!(out.code, 2, "{}", out.stderr);
        // The place is that of the value.
        let column = "    encoder: VisionTransformer(: ".len() + option.len() + 1;
        for part in [says, &format!("recipe.ron:5:{column}")] {
            assert!(out.stderr.contains(part), "{option}: {value}: no `{part}` in\n{}", out.stderr);
        }
    };
    refused("drop_path", "1.0", "at least 0 and less than 1, got 1");
    refused("drop_path", "-0.1", "at least 0 and less than 1, got -0.1");
    refused("layer_scale", "0.0", "greater than 0, got 0");
    refused("registers", "-1", "-1");
    refused("mlp", "SwiGLU", "SwiGlu");
    let decay = GOOD.replace("queue: 32", "queue: 32, layer_decay: 1.5");
    let out = check(&decay, "check");
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.contains("greater than 0 and at most 1, got 1.5"), "{}", out.stderr);
    assert!(out.stderr.contains("recipe.ron:8:29"), "{}", out.stderr);
}

#[test]
fn rules_across_fields() {
    refused(
        "queue: 32",
        "queue: None",
        "E0201",
        &["recipe.ron:11:16", "`InfoNce` reads the queue", "leave `queue` out"],
    );
    refused("    momentum_encoder: Ema(momentum: 0.9),\n", "", "E0202", &["add `momentum_encoder"]);
    refused(
        "    clusterer: KMeans(k: [4], start: Epochs(1)),\n",
        "",
        "E0203",
        &["`ProtoNce` reads prototypes"],
    );
    refused(
        "k: [4]",
        "k: [4, 500]",
        "E0205",
        &["recipe.ron:9:26", "500 prototypes, but only", "make k at most"],
    );
    refused("queue: 32", "queue: 8", "E0206", &["queue of 8 keys is shorter than one batch of 16"]);
    refused("batch: 16", "batch: 1600", "E0207", &["batch of 1600 is larger than the training set"]);
    refused(
        "ConvNet(channels: [8, 8])",
        "VisionTransformer(patch: 5)",
        "E0208",
        &["views of 16×16×3", "recipe.ron:5:14"],
    );
    refused(
        "ConvNet(channels: [8, 8]),",
        "MlpEncoder(dims: [8]),\n    layer_decay: 0.5,",
        "E0226",
        &["MlpEncoder does not say how deep its layers are", "recipe.ron:6:18", "`lr_scale`"],
    );
    refused("count: 2", "count: 1", "E0209", &["reads 2 views"]);
    refused(
        "(term: InfoNce(temperature: 0.2, negatives: Queue)),",
        "",
        "E0210",
        &["no term is active at the first step"],
    );
}

/// Makes replacements in the valid recipe; expects a warning of the code with every text of `says`, and no
/// error.
fn warned(changes: &[(&str, &str)], code: &str, says: &[&str]) {
    let mut text = GOOD.to_string();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in the recipe");
        text = text.replace(from, to);
    }
    let out = check(&text, "check");
    assert_eq!(out.code, 0, "{changes:?}: {}", out.stderr);
    assert!(out.stderr.contains(&format!("warning[{code}]")), "{changes:?}: no {code} in\n{}", out.stderr);
    for text in says {
        assert!(out.stderr.contains(text), "{changes:?}: no `{text}` in\n{}", out.stderr);
    }
    assert!(pauc(["explain", code]).stdout.starts_with(&format!("{code}: ")), "{code} is not explained");
}

#[test]
fn combinations_that_do_not_fit() {
    let momentum = "    momentum_encoder: Ema(momentum: 0.9),\n";
    // A queue term without a queue is in `rules_across_fields`; here a momentum term without momentum
    // encoder.
    let alone = GOOD
        .replace(momentum, "")
        .replace("    queue: 32,\n", "")
        .replace("negatives: Queue", "negatives: Keys");
    let out = check(&alone.replace("ProtoNce()", "SelfDistillation()"), "check");
    assert!(out.code == 2 && out.stderr.contains("`SelfDistillation` reads momentum keys"), "{}", out.stderr);
    // More negatives than other prototypes, few samples per prototype, more columns than prototypes.
    refused(
        "ProtoNce()",
        "ProtoNce(negatives: Sample(4))",
        "E0302",
        &["recipe.ron:12:", "Sample(4)", "of the 4 prototypes"],
    );
    let crowd = [("ProtoNce()", "Uniformity()"), ("k: [4]", "k: [60]"), ("batch: 16", "batch: 8")];
    warned(&crowd, "W0302", &["recipe.ron:12:", "60 prototypes for batches of 8", "`n_min: 2`"]);
    warned(&[("ProtoNce()", "Correlation()")], "W0303", &["recipe.ron:12:", "about 4 occupied", "8"]);
    warned(&[("ProtoNce()", "CosinePrediction()")], "W0305", &["recipe.ron:12:", "add `predictor: "]);
    warned(
        &[("weight: 0.5", "weight: 16.0")],
        "W0306",
        &["recipe.ron:12:", "is 16 times", "at most 4 times"],
    );
    // Predictors and micro-batches.
    refused(
        "    queue",
        "    predictor: Mlp(dims: [4, 5]),\n    queue",
        "E0216",
        &["recipe.ron:8:", "width 5; expected 8"],
    );
    warned(&[("    queue", "    predictor: Mlp(dims: [4, 8]),\n    queue")], "E0216", &["no term reads"]);
    refused("batch: 16", "batch: 16, micro_batch: 17", "E0217", &["recipe.ron:14:", "at most 16"]);
    // Accumulated batches do not make a larger batch; `lr_scale` of unknown parts.
    let says = ["recipe.ron:14:", "6 shards are not a power of two", "`shards: 4`"];
    refused("batch: 16", "batch: 16, shards: 6", "E0227", &says);
    let says = ["recipe.ron:14:", "32 shards of equal size do not make a batch of 24", "`shards: 8`"];
    refused("batch: 16", "batch: 24, shards: 32", "E0227", &says);
    let says = ["recipe.ron:14:", "a micro-batch of 5 is larger than a shard of 4 images", "at most 4"];
    refused("batch: 16", "batch: 16, shards: 4, micro_batch: 5", "E0217", &says);
    // Synchronized batch normalization.
    let says = ["recipe.ron:14:", "a batch has no shards", "`shards: 4`"];
    refused("batch: 16", "batch: 16, batch_norm: Synced", "E0228", &says);
    let says = ["recipe.ron:14:", "micro-batches of 2 images", "leave `micro_batch` out"];
    refused("batch: 16", "batch: 16, batch_norm: Synced, shards: 4, micro_batch: 2", "E0228", &says);
    // A batch that nothing can be added to.
    refused("batch: 16", "batch: 18446744073709551615, micro_batch: 16", "E0207", &["recipe.ron:14:"]);
    let says = ["recipe.ron:14:", "2 accumulated batches of 16", "`batch: 32, micro_batch: 16`"];
    warned(&[("batch: 16", "batch: 16, accumulate: 2")], "E0219", &says);
    refused("batch: 16", "batch: 16, accumulate: 5", "E0207", &["recipe.ron:14:", "make it at most"]);
    let scale = |part: &str| format!("    lr_scale: [(part: \"{part}\", factor: 0.5)],\n    queue");
    refused("    queue", &scale("encodr"), "E0220", &["recipe.ron:8:", "did you mean `encoder`?"]);
    refused("    queue", &scale("encoder.conv9"), "E0220", &["no part `encoder.conv9`"]);
    let twice =
        "    lr_scale: [(part: \"projector\", factor: 2), (part: \"projector\", factor: 3)],\n    queue";
    refused("    queue", twice, "E0220", &["`projector` has two factors"]);
    refused(
        "    queue",
        "    lr_scale: [(part: \"projector\", factor: 0)],\n    queue",
        "E0106",
        &["greater than 0"],
    );
}

#[test]
fn a_supervised_term_needs_labels() {
    // A flat folder of bitmaps: 54 bytes of header, then 16 × 16 pixels.
    let folder = tempfile::tempdir().unwrap();
    for i in 0..32u8 {
        let mut image = b"BM".to_vec();
        for v in [54 + 768u32, 0, 54, 40, 16, 16, 1 | 24 << 16, 0, 768, 0, 0, 0, 0] {
            image.extend(v.to_le_bytes());
        }
        image.extend((0..768u32).map(|p| (p % 251) as u8 ^ i));
        std::fs::write(folder.path().join(format!("{i}.bmp")), image).unwrap();
    }
    let data = format!("ImageFolder(root: {:?})", folder.path());
    let text = GOOD.replace("Shapes(count: 64, size: 16, classes: 4, seed: 1)", &data);
    let good = check(&text, "check");
    assert_eq!(good.code, 0, "{}", good.stderr);
    let out = check(&text.replace("ProtoNce()", "SupCon()"), "check");
    assert_eq!(out.code, 2, "{}", out.stderr);
    for says in ["error[E0204]", "recipe.ron:12:", "`SupCon` needs class labels", "use labeled data"] {
        assert!(out.stderr.contains(says), "no `{says}` in\n{}", out.stderr);
    }
}

#[test]
fn several_mistakes_are_reported_at_once() {
    let text = GOOD
        .replace("queue: 32", "queue: None")
        .replace("    clusterer: KMeans(k: [4], start: Epochs(1)),\n", "");
    let out = check(&text, "check");
    assert!(out.stderr.contains("E0201") && out.stderr.contains("E0203"), "{}", out.stderr);
    assert!(out.stderr.contains("2 errors and"), "{}", out.stderr);
}

#[test]
fn missing_or_damaged_data() {
    let with = |data: &str| GOOD.replace("Shapes(count: 64, size: 16, classes: 4, seed: 1)", data);
    let out = check(&with("FashionMnist(root: \"no/such/folder\")"), "run");
    assert_eq!(out.code, 4, "{}", out.stderr);
    assert!(out.stderr.contains("no/such/folder"), "{}", out.stderr);
    let checked = check(&with("FashionMnist(root: \"no/such/folder\")"), "check");
    assert_eq!(checked.code, 0, "a check without the data warns: {}", checked.stderr);
    assert!(checked.stderr.contains("warning[E0214]"), "{}", checked.stderr);

    let folder = tempfile::tempdir().unwrap();
    let name = |n: &str| folder.path().join(n);
    // The header promises 60 000 images of 28×28, but only a few bytes follow.
    let mut images = vec![0, 0, 8, 3, 0, 0, 0xea, 0x60, 0, 0, 0, 28, 0, 0, 0, 28];
    images.extend([0u8; 100]);
    std::fs::write(name("train-images-idx3-ubyte"), &images).unwrap();
    let mut labels = vec![0, 0, 8, 1, 0, 0, 0xea, 0x60];
    labels.extend([0u8; 60000]);
    std::fs::write(name("train-labels-idx1-ubyte"), &labels).unwrap();
    std::fs::write(name("t10k-images-idx3-ubyte"), &images).unwrap();
    std::fs::write(name("t10k-labels-idx1-ubyte"), &labels).unwrap();
    let out = check(&with(&format!("FashionMnist(root: {:?})", folder.path())), "run");
    assert_eq!(out.code, 4, "{}", out.stderr);
    assert!(out.stderr.contains("train-images-idx3-ubyte"), "{}", out.stderr);
}

#[test]
fn a_nan_loss_names_step_term_and_checkpoint() {
    let wild = GOOD
        .replace(
            "train: (epochs: 2, batch: 16)",
            "optimizer: Sgd(lr: 1e30), train: (epochs: 40, batch: 16, checkpoint_every: Epochs(1))",
        )
        .replace("KMeans(k: [4], start: Epochs(1))", "KMeans(k: [4], start: Epochs(39))");
    let out = check(&wild, "run");
    assert_eq!(out.code, 1, "{}", out.stderr);
    for text in [
        "is not finite at step ",
        "first",
        "checkpoint",
        "the learning rate is far too high",
        "--set optimizer.lr=",
    ] {
        assert!(out.stderr.contains(text), "no `{text}` in\n{}", out.stderr);
    }
}

#[test]
fn usage() {
    let missing = pauc(["run", "no-such-recipe.ron"]);
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("cannot read the recipe no-such-recipe.ron"), "{}", missing.stderr);
    assert_eq!(pauc(["explain", "InfoNse"]).code, 2);
    assert!(pauc(["explain", "InfoNse"]).stderr.contains("did you mean `InfoNce`?"));
    assert_eq!(pauc(["list", "encoders"]).code, 2);
    assert_eq!(pauc(["resume", "no/such/run"]).code, 2);
    assert_eq!(pauc(["frobnicate"]).code, 2);
    let set = pauc(["check", "recipes/quickstart.ron", "--set", "train.epoch=5"]);
    assert_eq!(set.code, 2);
    assert!(set.stderr.contains("did you mean `epochs`?"), "{}", set.stderr);
    let set = pauc(["check", "recipes/quickstart.ron", "--set", "objective[9].weight=5"]);
    assert!(set.stderr.contains("E0107") && set.stderr.contains("item 9 does not exist"), "{}", set.stderr);
    for (assignment, place) in
        [("queue=(", "the assignment:1:7"), ("queue=5), name: \"x\"", "the assignment:1:7")]
    {
        let set = pauc(["check", "recipes/quickstart.ron", "--set", assignment]);
        let says = ["E0107", place, "`queue` cannot be set to this", "close every bracket"];
        assert!(set.code == 2 && says.iter().all(|s| set.stderr.contains(s)), "{}", set.stderr);
    }
    let set = pauc(["check", "--json", "recipes/quickstart.ron", "--set", "queue=("]);
    assert!(set.stdout.contains("\"recipe\":\"recipes/quickstart.ron\""), "{}", set.stdout);
    assert!(Path::new(&common::root()).is_dir());
}

#[test]
fn an_unwritable_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("recipe.ron"), GOOD).unwrap();
    // A file in place of the runs folder: writing fails for every user.
    std::fs::write(at("file"), "not a folder").unwrap();
    let out = pauc(["run", &at("recipe.ron"), "--out", &at("file/runs")]);
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(out.stderr.contains("file/runs") && !out.stderr.contains("panicked"), "{}", out.stderr);
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "not a folder");
    // A read-only folder; the user who runs the tests may be able to write to it anyway.
    let mut rights = std::fs::metadata(folder.path()).unwrap().permissions();
    std::fs::create_dir(at("closed")).unwrap();
    rights.set_readonly(true);
    std::fs::set_permissions(at("closed"), rights).unwrap();
    if std::fs::write(at("closed/try"), "x").is_ok() {
        println!("skipped: this user can write to read-only folders");
        return;
    }
    let out = pauc(["run", &at("recipe.ron"), "--out", &at("closed/runs")]);
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(out.stderr.contains("closed/runs") && out.stderr.contains("ermission"), "{}", out.stderr);
}

#[test]
fn a_damaged_run_folder_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("recipe.ron"), GOOD).unwrap();
    let done = pauc(["run", &at("recipe.ron"), "--out", &at("runs"), "--max-steps", "3"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let run = common::only_run(&folder.path().join("runs"));
    let (last, description) = (run.join("checkpoints/last.safetensors"), run.join("run.json"));
    let (checkpoint, whole) = (std::fs::read(&last).unwrap(), std::fs::read(&description).unwrap());
    // Truncated, and not JSON at all.
    for damaged in [&whole[..whole.len() / 2], b"{}"] {
        std::fs::write(&description, damaged).unwrap();
        let out = pauc(["run", &at("recipe.ron"), "--out", &at("runs")]);
        assert_eq!(out.code, 4, "{}", out.stderr);
        assert!(out.stderr.contains("run.json") && !out.stderr.contains("panicked"), "{}", out.stderr);
        assert!(
            std::fs::read(&last).unwrap() == checkpoint && std::fs::read(&description).unwrap() == damaged
        );
    }
    // A folder in place of the log: the run does not start, and its checkpoint stays.
    std::fs::write(&description, &whole).unwrap();
    std::fs::remove_file(run.join("metrics.jsonl")).unwrap();
    std::fs::create_dir(run.join("metrics.jsonl")).unwrap();
    let out = pauc(["resume", run.to_str().unwrap()]);
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(out.stderr.contains("metrics.jsonl"), "{}", out.stderr);
    assert!(std::fs::read(&last).unwrap() == checkpoint);
}

#[test]
fn unsupported_instruction_sets_are_refused_by_every_verb() {
    for args in [
        &["cluster", "features.npy", "--with", "KMeans(k: [2])"][..],
        &["term", "InfoNce()", "--inputs", "batch"],
        &["list"],
        &["devices"],
    ] {
        let out = pauc_with(&[("PAUC_SIMD", "mmx")], args);
        assert_eq!((out.code, &*out.stdout), (2, ""), "{args:?}: {}", out.stderr);
        let line = out.stderr.trim_end();
        assert!(
            line.starts_with("error: PAUC_SIMD=\"mmx\" is not supported on this machine; "),
            "{args:?}: {line}"
        );
        assert!(line.ends_with(", or unset it") && !line.contains('\n'), "{args:?}: {line}");
    }
    assert_eq!(pauc_with(&[("PAUC_SIMD", "portable")], ["list"]).code, 0);
}

#[test]
fn a_probe_alone_may_read_the_prototypes() {
    let alone = GOOD.replace("(term: ProtoNce(), weight: 0.5),", "");
    let unread = check(&alone, "check");
    assert!(unread.code == 0 && unread.stderr.contains("warning[E0211]"), "{}", unread.stderr);
    let probed = alone.replace("train: (", "probes: [Coagulation()], train: (");
    let read = check(&probed, "check");
    assert!(read.code == 0 && !read.stderr.contains("E0211"), "{}", read.stderr);
}
