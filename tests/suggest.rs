//! From a folder of images to a recipe and a run, without a recipe to begin with.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, assert_says};
use std::path::Path;
use std::process::Command;

/// Runs `pauc-cli` in a folder.
fn pauc_in(folder: &Path, args: &[&str]) -> Output {
    let out = Command::new(env!("CARGO_BIN_EXE_pauc-cli"))
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let done =
        Output { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) };
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    done
}

/// Writes an image of noise, which depends on `seed`. The extension gives the format.
fn picture(path: &Path, [width, height]: [u32; 2], is_gray: bool, seed: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let value = |x: u32, y: u32, c: u32| {
        let mixed = (x * 7 + y * 131 + c * 977 + seed * 7919).wrapping_mul(2_654_435_761);
        (mixed >> 24) as u8
    };
    let pixel = |x, y| match is_gray {
        true => image::Rgb([value(x, y, 0); 3]),
        false => image::Rgb([0, 1, 2].map(|c| value(x, y, c))),
    };
    image::RgbImage::from_fn(width, height, pixel).save(path).unwrap();
}

/// Writes `count` images to `folder`, one after the other in `classes` folders; 0: directly.
fn pictures(folder: &Path, count: u32, classes: u32, size: impl Fn(u32) -> [u32; 2], is_gray: bool) {
    for i in 0..count {
        let name = format!("{i:05}.png");
        let path = match classes {
            0 => folder.join(name),
            n => folder.join(format!("class {}", i % n)).join(name),
        };
        picture(&path, size(i), is_gray, i);
    }
}

/// Writes a recipe for `folder/images` with these options, and returns its text.
fn suggested(folder: &Path, options: &[&str]) -> String {
    let args = [&["new", "recipe", "images", "--measure", "0.1", "--force"], options].concat();
    let done = pauc_in(folder, &args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout.contains("wrote images.ron; train it with `pauc-cli run images.ron`"),
        "{}",
        done.stdout
    );
    std::fs::read_to_string(folder.join("images.ron")).unwrap()
}

#[test]
fn data_verbs_take_folders_and_views_fit_the_images() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("images"), 12, 2, |_| [60, 50], false);
    let stats = pauc_in(folder.path(), &["data", "stats", "images"]);
    assert!(stats.code == 0 && stats.stdout.contains("test: 2 images"), "{}{}", stats.stdout, stats.stderr);
    for what in ["images", "ImageFolder(root: \"images\")"] {
        let drawn = pauc_in(folder.path(), &["data", "preview", what, "--images", "3", "--out", "views.png"]);
        assert_eq!(drawn.code, 0, "{}", drawn.stderr);
        let sheet = image::open(folder.path().join("views.png")).unwrap();
        // Three images with views of 48 pixels, the size of recipes for images of this size; the views of a recipe
        // without images have 28.
        assert!(sheet.height() > 3 * 48, "{what}: {}", sheet.height());
    }
    let missing = pauc_in(folder.path(), &["data", "stats", "imagse"]);
    assert_says(&missing, 4, &["did you mean `images`?"]);
}

#[test]
fn a_run_whose_images_vanish_is_saved_and_resumes_when_they_are_back() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 40, 0, |_| [40, 40], false);
    let recipe = r#"Recipe(
        name: "short", data: ImageFolder(root: "images", test_fraction: 0, cache: 0), objective: [(term: InfoNce())],
        views: [(ops: [RandomResizedCrop(size: 8)])], encoder: ConvNet(channels: [8]), projector: Mlp(dims: [8]),
        train: (epochs: 60, batch: 8, log_every: 1),
    )"#;
    std::fs::write(folder.path().join("short.ron"), recipe).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_pauc-cli"))
        .args(["run", "short.ron", "--out", "runs"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let of_run =
        || std::fs::read_dir(folder.path().join("runs")).ok()?.next()?.ok().map(|e| e.path().join("seed0"));
    let has_stepped = || {
        let log = std::fs::read_to_string(of_run()?.join("metrics.jsonl")).ok()?;
        log.contains("\"step\":5").then_some(())
    };
    while has_stepped().is_none() {
        assert!(run.try_wait().unwrap().is_none(), "it ended before its images vanished");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::fs::rename(&images, folder.path().join("away")).unwrap();
    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(4), "{said}");
    assert!(said.contains("an image cannot be read: the run is saved at step"), "{said}");

    std::fs::rename(folder.path().join("away"), &images).unwrap();
    let run = of_run().unwrap();
    let resumed = pauc_in(folder.path(), &["resume", run.to_str().unwrap()]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("finished after"), "{}", resumed.stderr);
}

/// The width and height of an image, by its number.
type Sizes = fn(u32) -> [u32; 2];

#[test]
fn check_finds_nothing_in_a_suggested_recipe() {
    let same: Sizes = |_| [28, 28];
    let odd: Sizes = |i| [17 + i % 50, 90 - i % 40];
    let large: Sizes = |i| [70 + i % 30, 75];
    let cases: [(u32, u32, Sizes, bool, &str); 6] = [
        (20, 0, same, true, "HorizontalFlip"),
        (20, 2, same, false, "SimClr(size: 28"),
        (33, 11, odd, false, "SimClr("),
        (240, 3, large, false, "MocoV2(size: 64)"),
        (240, 0, large, true, "GaussianBlur"),
        (5000, 10, |_| [8, 8], true, "size: 16"),
    ];
    for (count, classes, size, is_gray, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        pictures(&folder.path().join("images"), count, classes, size, is_gray);
        for goal in ["embeddings", "clusters"] {
            let text = suggested(folder.path(), &["--goal", goal, "--budget", "1min"]);
            assert!(text.contains(says), "{count} images: no {says} in\n{text}");
            assert_eq!(text.contains("KMeans("), goal == "clusters", "{text}");
            assert_eq!(text.contains("Knn("), classes > 0, "{text}");
            let checked = pauc_in(folder.path(), &["check", "images.ron"]);
            assert_eq!(
                (checked.code, &*checked.stderr),
                (0, ""),
                "{count} images in {classes} classes\n{text}"
            );
            assert_eq!(checked.stdout, "images.ron: ok\n");
        }
    }
}

#[test]
fn a_folder_is_trained_with_one_command() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("images"), 24, 2, |_| [16, 16], false);
    let run = ["run", "images", "--budget", "2s", "--measure", "0.1"];
    let done = pauc_in(folder.path(), &run);
    assert_says(&done, 0, &["24 images in 2 classes, 16 × 16 pixels, in color", "wrote images.ron", "epoch"]);
    assert!(done.stdout.contains("knn/cos/k5") && done.stdout.contains("report.html"), "{}", done.stdout);
    // The recipe is not overwritten, and trains like any other.
    let text = std::fs::read_to_string(folder.path().join("images.ron")).unwrap();
    let again = pauc_in(folder.path(), &run);
    assert_says(
        &again,
        2,
        &["images.ron already exists; train it with `pauc-cli run images.ron`", "--force"],
    );
    assert_eq!(std::fs::read_to_string(folder.path().join("images.ron")).unwrap(), text);
    assert_says(&pauc_in(folder.path(), &["run", "images.ron"]), 0, &["already"]);
    assert_eq!(pauc_in(folder.path(), &[&run[..], &["--force", "--max-steps", "1"]].concat()).code, 0);
    let budget = pauc_in(folder.path(), &["run", "images.ron", "--budget", "1h"]);
    assert_says(&budget, 2, &["--budget are for data"]);
}

#[test]
fn a_dataset_keeps_the_settings_that_are_given() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("images"), 60, 3, |_| [16, 16], false);
    let data = "ImageFolder(root: \"images\", test_fraction: 0.4)";
    let args = ["new", "recipe", data, "--measure", "0.1", "--budget", "5s", "--out", "mine.ron"];
    let done = pauc_in(folder.path(), &args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let text = std::fs::read_to_string(folder.path().join("mine.ron")).unwrap();
    assert!(
        text.contains("test_fraction: 0.4, on_error: Fail)") && text.contains("name: \"mine\""),
        "{text}"
    );
    assert_eq!(pauc_in(folder.path(), &["check", "mine.ron"]).stdout, "mine.ron: ok\n");
    let typo = pauc_in(folder.path(), &["new", "recipe", "ImageFoldr(root: \"images\")"]);
    assert_says(&typo, 2, &["did you mean `ImageFolder`?"]);
}

#[test]
fn broken_images_are_left_out_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 30, 0, |_| [16, 16], false);
    std::fs::write(images.join("torn.png"), "not a picture").unwrap();
    std::fs::write(images.join("clip.mp4"), "").unwrap();
    let text = suggested(folder.path(), &["--budget", "1s"]);
    assert!(text.contains("on_error: Skip(max: 2)") && text.contains("images/torn.png"), "{text}");
    assert_eq!(pauc_in(folder.path(), &["check", "images.ron"]).stdout, "images.ron: ok\n");
    let done = pauc_in(folder.path(), &["run", "images.ron"]);
    assert_says(&done, 0, &["30 training", "1 other files ignored", "1 unreadable images skipped"]);
}

/// What each mistake says, for both verbs: the exit code, and texts of the message, which is one line.
#[test]
fn mistakes_have_one_clear_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("empty")).unwrap();
    pictures(&at("one"), 1, 0, |_| [16, 16], false);
    pictures(&at("two"), 2, 0, |_| [16, 16], false);
    pictures(&at("photos"), 20, 0, |_| [16, 16], false);
    std::fs::create_dir_all(at("films")).unwrap();
    std::fs::create_dir_all(at("a run")).unwrap();
    for (file, text) in [
        ("films/clip.MP4", ""),
        ("clip.mp4", ""),
        ("all.zip", ""),
        ("a run/metrics.jsonl", ""),
        ("notes.txt", "remember the milk"),
    ] {
        std::fs::write(at(file), text).unwrap();
    }
    for (name, code, says) in [
        ("empty", 4, &["empty: has no images; expected files ending in bmp"][..]),
        ("one", 4, &["1 readable training images are too few", "at least 20"]),
        ("two", 4, &["2 readable training images are too few", "at least 20"]),
        ("films", 4, &["has no images", "clip.MP4", "ffmpeg"]),
        ("clip.mp4", 2, &["clip.mp4 is not a dataset", "ffmpeg"]),
        ("all.zip", 2, &["all.zip is not a dataset; unpack it first"]),
        ("photo", 4, &["photo: not found; did you mean `photos`?"]),
        ("a run", 2, &["is the folder of a run", "`pauc-cli resume`"]),
        ("photos/00003.png", 2, &["is a single image; give the folder"]),
    ] {
        for verb in [&["new", "recipe"][..], &["run"]] {
            let done = pauc_in(folder.path(), &[verb, &[name]].concat());
            assert_says(&done, code, says);
            assert_eq!(done.stderr.trim_end().lines().count(), 1, "{name}: {}", done.stderr);
        }
    }
    // `run` takes a text for a recipe.
    let text = pauc_in(folder.path(), &["new", "recipe", "notes.txt"]);
    assert_says(&text, 2, &["notes.txt is not a dataset; give a folder of images"]);
    assert_says(&pauc_in(folder.path(), &["run", "notes.txt"]), 2, &["error[E0101]"]);
    let budget = pauc_in(folder.path(), &["new", "recipe", "photos", "--budget", "soon"]);
    assert_says(&budget, 2, &["write a time such as 10min, 1h"]);
    // Nothing was written.
    let recipes = std::fs::read_dir(folder.path()).unwrap().filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "ron")
    });
    assert_eq!(recipes.count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn an_unreadable_folder_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("images"), 20, 2, |_| [16, 16], false);
    let closed = folder.path().join("images/class 1");
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(folder.path(), 0o755);
    set(&closed, 0o000);
    // Root may read everything: then as nobody, if that is possible.
    let mut program = match std::fs::read_dir(&closed) {
        Err(_) => Command::new(env!("CARGO_BIN_EXE_pauc-cli")),
        Ok(_) => {
            let mut program = Command::new("setpriv");
            program.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            program.arg(env!("CARGO_BIN_EXE_pauc-cli"));
            program
        }
    };
    let done = program.args(["new", "recipe", "images"]).current_dir(folder.path()).output();
    set(&closed, 0o755);
    let Ok(done) = done else { return eprintln!("skipped: no setpriv") };
    let said = String::from_utf8(done.stderr).unwrap();
    if done.status.code() == Some(126) || said.starts_with("setpriv") {
        return eprintln!("skipped: {said}");
    }
    assert_eq!(done.status.code(), Some(4), "{said}");
    assert!(
        said.contains("class 1: cannot be listed: Permission denied") && said.contains("chmod"),
        "{said}"
    );
}

#[test]
fn many_files_in_one_folder_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 1, 0, |_| [16, 16], false);
    // Links to one file are images, too; all but the first are copies.
    for i in 1..3000 {
        std::fs::hard_link(images.join("00000.png"), images.join(format!("{i:05}.png"))).unwrap();
    }
    let text = suggested(folder.path(), &["--budget", "10s"]);
    let lines = text.replace("\n//", "");
    assert!(lines.contains("3000 images") && lines.contains("2999 are copies of others"), "{text}");
}
