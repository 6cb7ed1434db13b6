//! The `data` commands, and how a run reports images that it skipped or that are doubtful.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::pauc;
use pauc_testing::{assert_within, tolerance};
use std::path::Path;

/// A folder of two classes with 12 images each, including an unreadable image and a duplicate.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for class in ["cat", "dog"] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        for i in 0..12u8 {
            let shade = i * 9 + if class == "dog" { 100 } else { 0 };
            let picture =
                image::RgbImage::from_fn(20, 24, |x, y| image::Rgb([shade, x as u8 * 12, y as u8 * 10]));
            picture.save(folder.path().join(class).join(format!("{i:02}.png"))).unwrap();
        }
    }
    std::fs::write(folder.path().join("cat/03.png"), b"\x89PNG\r\n\x1a\nno more").unwrap();
    std::fs::copy(folder.path().join("dog/01.png"), folder.path().join("dog/02.png")).unwrap();
    folder
}

fn set(root: &Path, more: &str) -> String {
    format!("ImageFolder(root: {:?}, {more})", root.display().to_string())
}

#[test]
fn verify_lists_unreadable_and_changed_images() {
    let folder = folder();
    let set = set(folder.path(), "");
    let out = pauc(["data", "verify", &set]);
    assert_eq!(out.code, 4, "{}", out.stderr);
    assert!(out.stdout.contains("cat/03.png: cannot be read as an image"), "{}", out.stdout);
    assert!(out.stdout.contains("23 images are readable, 1 are not"), "{}", out.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&pauc(["data", "verify", &set, "--json"]).stdout).unwrap();
    assert!(json["unreadable"][0]["path"].as_str().unwrap().ends_with("cat/03.png"));
    // A part of a dataset can be verified in the same way.
    let part = pauc(["data", "verify", &format!("Subset(of: {set}, classes: [\"cat\"])")]);
    assert!(part.code == 4 && part.stdout.contains("11 images are readable, 1 are not"), "{}", part.stdout);

    std::fs::remove_file(folder.path().join("cat/03.png")).unwrap();
    let index = folder.path().join("index.json");
    let index = index.to_str().unwrap();
    let made = pauc(["data", "index", &set, "--out", index]);
    assert!(made.code == 0 && made.stdout.contains("23 images"), "{} {}", made.stdout, made.stderr);
    let same = pauc(["data", "verify", &set, "--index", index]);
    assert!(same.code == 0 && same.stdout.contains("0 differences"), "{}", same.stdout);
    std::fs::copy(folder.path().join("dog/01.png"), folder.path().join("dog/05.png")).unwrap();
    std::fs::rename(folder.path().join("dog/06.png"), folder.path().join("dog/99.png")).unwrap();
    let changed = pauc(["data", "verify", &set, "--index", index]);
    assert_eq!(changed.code, 4);
    for says in ["05.png: different image", "06.png: missing", "99.png: new"] {
        assert!(changed.stdout.contains(says), "{says}: {}", changed.stdout);
    }
    let whole = std::fs::read(index).unwrap();
    std::fs::write(index, &whole[..whole.len() / 2]).unwrap();
    let cut = pauc(["data", "verify", &set, "--index", index]);
    assert!(cut.code == 4 && cut.stderr.contains("is a truncated or damaged index"), "{}", cut.stderr);
}

#[test]
fn stats_match_the_images() {
    let folder = folder();
    let set = set(folder.path(), "on_error: Skip(max: 1), test_fraction: 0");
    let out = pauc(["data", "stats", &set, "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let json: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    let train = &json["splits"][0];
    assert_eq!((&train["classes"]["cat"], &train["classes"]["dog"]), (&11.into(), &12.into()));
    assert_eq!((&train["heights"][0], &train["widths"][2]), (&24.into(), &20.into()));
    // Green is 12 x for every x in 0..20, in every picture.
    let mean = train["channels"][1][0].as_f64().unwrap();
    // Rounded to `f32`, and again to the digits that are printed.
    let want = 12.0 * 9.5 / 255.0;
    assert_within!(mean, want, tolerance::f32(2, want));
    assert_eq!(json["duplicates"].as_array().unwrap().len(), 1);
    let text = pauc(["data", "stats", &set]);
    assert!(
        text.stdout.contains("1 groups of identical images, 0 of them in both splits"),
        "{}",
        text.stdout
    );
}

#[test]
fn preview_writes_a_picture_of_views() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("views.png");
    let preview = |out: &Path| {
        let recipe = "recipes/fashion-mini/simclr.ron";
        pauc(["data", "preview", recipe, "--images", "3", "--out", out.to_str().unwrap()])
    };
    let made = preview(&out);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let picture = image::open(&out).unwrap();
    // Three rows of an evaluation view and two random ones, 28 pixels and a gap of two each.
    assert_eq!((picture.width(), picture.height()), (92, 92));
    let again = folder.path().join("again.png");
    assert_eq!(preview(&again).code, 0);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
    let bad = pauc(["data", "preview", "Shapes(sise: 8)"]);
    assert!(bad.code == 2 && bad.stderr.contains("unknown field `sise`"), "{}", bad.stderr);
}

#[test]
fn bench_data_reports_every_stage() {
    let out = pauc([
        "bench",
        "data",
        "Shapes(count: 64, size: 32)",
        "--seconds",
        "0.05",
        "--json",
        "--loader-threads",
        "0,2",
    ]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let json: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    for speed in json["speed"].as_array().unwrap() {
        for stage in ["images_per_second", "read", "augment", "normalise"] {
            assert!(speed[stage].as_f64().unwrap() > 0.0, "{stage}: {speed}");
        }
    }
    assert_eq!(json["speed"][1]["threads"], 2);
}

#[test]
fn a_run_lists_the_images_it_skipped() {
    let folder = folder();
    let recipe = |skip: &str| {
        format!(
            "Recipe(name: \"skip\", data: {}, views: [(ops: [SimClr(size: 16)])], encoder: ConvNet(channels: [4]), \
             projector: Mlp(dims: [4]), objective: [(term: InfoNce())], train: (epochs: 1, batch: 8), \
             probes: [], schedule: Constant)",
            set(folder.path(), skip)
        )
    };
    let runs = tempfile::tempdir().unwrap();
    let path = runs.path().join("recipe.ron");
    let run = |text: &str| {
        std::fs::write(&path, text).unwrap();
        pauc(["run", path.to_str().unwrap(), "--out", runs.path().join("runs").to_str().unwrap()])
    };
    let out = run(&recipe("on_error: Skip(max: 1)"));
    assert_eq!(out.code, 0, "{}", out.stderr);
    let run_dir = common::only_run(&runs.path().join("runs"));
    let listed = std::fs::read_to_string(run_dir.join("data_errors.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert!(line["path"].as_str().unwrap().ends_with("cat/03.png"), "{listed}");
    assert!(line["reason"].as_str().unwrap().contains("cannot be read as an image"), "{listed}");
    let info = std::fs::read_to_string(run_dir.join("run.json")).unwrap();
    assert!(info.contains("1 unreadable images skipped"), "{info}");
    let out = run(&recipe("on_error: Skip(max: 0)"));
    assert!(out.code == 4 && out.stderr.contains("more than on_error: Skip(max: 0)"), "{}", out.stderr);
    let out = run(&recipe(""));
    assert!(out.code == 4 && out.stderr.contains("cat/03.png"), "{}", out.stderr);
}

/// Returns a noisy picture of one color.
fn noisy(color: usize, seed: u32) -> image::RgbImage {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    image::RgbImage::from_fn(16, 16, |_, _| {
        let mut value = [0u8; 3];
        for (channel, v) in value.iter_mut().enumerate() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *v = (state >> 24) as u8 / 4 + if channel == color { 160 } else { 20 };
        }
        image::Rgb(value)
    })
}

/// Trains on noisy pictures of three classes, after `plant` has changed some, and returns what the run says about them
/// and its report.
fn issues(plant: impl Fn(&Path)) -> (serde_json::Value, String) {
    let folder = tempfile::tempdir().unwrap();
    for (c, class) in ["red", "green", "blue"].into_iter().enumerate() {
        for (split, count) in [("train", 40), ("test", 10)] {
            let to = folder.path().join("photos").join(split).join(class);
            std::fs::create_dir_all(&to).unwrap();
            for i in 0..count {
                let seed = (c * 100 + i + if split == "test" { 50 } else { 0 }) as u32;
                noisy(c, seed).save(to.join(format!("{i:02}.png"))).unwrap();
            }
        }
    }
    let root = folder.path().join("photos");
    plant(&root);
    let recipe = format!(
        "Recipe(name: \"planted\", data: ImageFolder(root: {:?}), views: [(ops: [RandomResizedCrop(size: 16)])], \
         encoder: ConvNet(channels: [8]), projector: Mlp(dims: [4]), objective: [(term: InfoNce())], \
         train: (epochs: 1, batch: 20), probes: [])",
        root.display().to_string()
    );
    let run = common::trained(&recipe, folder.path(), &[]);
    let text = std::fs::read_to_string(run.join("figures/data-issues.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), std::fs::read_to_string(run.join("report.html")).unwrap())
}

#[test]
fn clean_images_have_no_leaks_and_no_wrong_labels() {
    let (found, report) = issues(|_| {});
    assert_eq!((&found["images"], &found["leaked"], &found["wrong"]), (&150.into(), &0.into(), &0.into()));
    assert!(found["agreement"].as_f64().unwrap() > 0.95, "{found}");
    let says = "No test image has a near-duplicate in the training split. No label is likely wrong.";
    assert!(report.contains(says) && !report.contains("Test images leak"));
}

#[test]
fn planted_copies_and_wrong_labels_are_found() {
    let (found, report) = issues(|root| {
        std::fs::copy(root.join("train/red/03.png"), root.join("test/red/07.png")).unwrap();
        let mut retouched = image::open(root.join("train/green/08.png")).unwrap().to_rgb8();
        retouched.get_pixel_mut(3, 5).0[0] += 9;
        retouched.save(root.join("test/green/02.png")).unwrap();
        noisy(2, 999).save(root.join("train/red/11.png")).unwrap();
    });
    let leaks = found["leaks"].as_array().unwrap();
    let pair = |i: usize| [&leaks[i]["test"], &leaks[i]["train"]].map(|v| v.as_str().unwrap().to_string());
    assert_eq!((found["leaked"].as_u64(), leaks.len()), (Some(2), 2), "{found}");
    assert_eq!(
        (pair(0), &leaks[0]["equal"]),
        (["test/red/07.png", "train/red/03.png"].map(String::from), &true.into())
    );
    assert_eq!((pair(1)[0].as_str(), pair(1)[1].as_str()), ("test/green/02.png", "train/green/08.png"));
    let wrong = found["wrong_labels"].as_array().unwrap();
    assert_eq!((found["wrong"].as_u64(), wrong.len()), (Some(1), 1), "{found}");
    assert_eq!((&wrong[0]["class"], &wrong[0]["neighbors"]), (&"red".into(), &"blue".into()));
    assert!(wrong[0]["image"].as_str().unwrap().ends_with("red/11.png"), "{found}");
    for part in [
        "✗ Test images leak: 2 of 30 test images have a near-duplicate in the training split",
        "<h2>Near-duplicates across the splits",
        "<h2>Likely wrong labels",
        "Pairs of near-duplicates",
        "<td>train&#x2f;red&#x2f;11.png</td>",
    ] {
        assert!(report.contains(part), "no {part:?}");
    }
}

#[test]
fn fetch_suggests_a_dataset_or_the_feature() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    let out = pauc(["data", "fetch", "Cifar11", "--root", root]);
    assert_eq!(out.code, 2, "{}", out.stderr);
    let says = if cfg!(feature = "download") { "did you mean `Cifar10`?" } else { "--features download" };
    assert!(out.stderr.contains(says) && out.stderr.trim().lines().count() == 1, "{}", out.stderr);
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
}
