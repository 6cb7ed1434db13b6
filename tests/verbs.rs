//! `eval`, `embed`, `compare` and `report` on small runs.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, pauc};
use pauc::cluster::feature_files::Matrix;
use pauc::cluster::sample_columns::SampleColumns;
use pauc_testing::{assert_within, tolerance};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Two recipes with two seeds each, trained once for all tests.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn get() -> &'static Runs {
        static RUNS: OnceLock<Runs> = OnceLock::new();
        RUNS.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            for (name, temperature) in [("cool", "0.2"), ("warm", "0.5")] {
                let recipe = folder.path().join(format!("{name}.ron"));
                let text = format!(
                    r#"Recipe(version: 1, name: "{name}", data: Shapes(count: 100, size: 16, classes: 4),
                    views: [(count: 2, ops: [RandomResizedCrop(size: 16), HorizontalFlip()])],
                    encoder: ConvNet(channels: [4, 8], grid: 1), projector: Mlp(dims: [6]),
                    momentum_encoder: Ema(momentum: 0.9),
                    objective: [(term: InfoNce(temperature: {temperature}))],
                    train: (epochs: 2, batch: 20), probes: [Knn(k: 5), Rank()])"#
                );
                std::fs::write(&recipe, text).unwrap();
                let out = folder.path().join("runs");
                let args = ["run", path(&recipe), "--seeds", "0,1", "--out", path(&out)];
                let done = pauc(args);
                assert_eq!(done.code, 0, "{}", done.stderr);
            }
            Runs { folder }
        })
    }

    fn recipe(&self, name: &str) -> PathBuf {
        let all = std::fs::read_dir(self.folder.path().join("runs")).unwrap();
        let mut all = all.map(|e| e.unwrap().path());
        all.find(|p| p.file_name().unwrap().to_str().unwrap().starts_with(name)).unwrap()
    }

    fn cool(&self) -> PathBuf {
        self.recipe("cool").join("seed0")
    }

    /// Returns the metrics that the run logged.
    fn logged(&self) -> Value {
        let log = std::fs::read_to_string(self.cool().join("metrics.jsonl")).unwrap();
        let mut probes = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        probes.rfind(|e| e["event"] == "probe").unwrap()["metrics"].clone()
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(out: &Output) -> Value {
    assert_eq!(out.code, 0, "{}", out.stderr);
    serde_json::from_str(&out.stdout).unwrap()
}

fn refused<'a>(args: impl IntoIterator<Item = &'a str>, code: i32, says: &str) {
    let out = pauc(args);
    assert_eq!(out.code, code, "{says}: {} {}", out.stdout, out.stderr);
    assert!(out.stderr.contains(says) && !out.stderr.contains("panicked"), "no `{says}` in\n{}", out.stderr);
}

#[test]
fn eval_reproduces_the_metrics_of_the_run() {
    let runs = Runs::get();
    let run = runs.cool();
    let args = ["eval", path(&run), "--probe", "Knn(k: 5)", "--probe", "Rank()", "--json"];
    let got = json(&pauc(args));
    for m in runs.logged().as_array().unwrap() {
        assert_eq!(got["metrics"][m["name"].as_str().unwrap()], m["value"], "{}", m["name"]);
    }
    // Other weights give other features; held-out training images give another score under another name.
    let with = |more: &[&str]| json(&pauc(args.iter().chain(more).copied()));
    assert_ne!(with(&["--momentum"])["metrics"]["rankme/features"], got["metrics"]["rankme/features"]);
    let held_out = with(&["--split", "train"]);
    let score = held_out["metrics"]["knn/cos/k5/t0.07@train/5"].as_f64().unwrap();
    assert_within!(
        score * 20.0,
        (score * 20.0).round(),
        tolerance::f64(2, 20.0),
        "not a fraction of 20 images"
    );
    // The same dataset given by name gives the same; other images of the same size do not.
    assert_eq!(with(&["--data", "Shapes(count: 100, size: 16, classes: 4)"])["metrics"], got["metrics"]);
    let other = with(&["--data", "Shapes(count: 60, size: 16, classes: 3, seed: 9)"]);
    assert_ne!(other["metrics"], got["metrics"]);
}

#[test]
fn embeddings_are_in_order_with_their_provenance() {
    let runs = Runs::get();
    let run = runs.cool();
    let to = |name: &str, more: &[&str]| {
        let out = runs.folder.path().join(name);
        let args = ["embed", path(&run), "--out", path(&out)];
        let done = pauc(args.iter().chain(more).copied());
        assert_eq!(done.code, 0, "{}", done.stderr);
        std::fs::read(out).unwrap()
    };
    let test = to("test.safetensors", &[]);
    assert!(test == to("again.safetensors", &["--threads", "1"]), "two calls differ");
    let file = safetensors::SafeTensors::deserialize(&test).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&test).unwrap();
    let metadata = metadata.metadata().clone().unwrap();
    assert_eq!((metadata["split"].as_str(), metadata["step"].as_str()), ("test", "10"));
    assert_eq!(metadata["provenance"].len(), 64);
    assert_eq!(metadata["weights"].len(), 64);
    let ids: Vec<i64> = file.tensor("ids").unwrap().data().chunks(8).map(long).collect();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    // The vectors are those of the probes: nearest neighbors by loops give the logged accuracy.
    let train = to("train.safetensors", &["--split", "train"]);
    let bank = safetensors::SafeTensors::deserialize(&train).unwrap();
    let (hits, open) = knn(&rows(&bank), &labels(&bank), &rows(&file), &labels(&file));
    let logged = runs.logged().as_array().unwrap().iter().find(|m| m["name"] == "knn/cos/k5/t0.07").cloned();
    let logged = 20.0 * logged.unwrap()["value"].as_f64().unwrap();
    assert_within!(logged, logged.round(), tolerance::f64(2, 20.0), "not a fraction of 20 images");
    let logged = logged.round() as usize;
    assert!((hits..=hits + open).contains(&logged) && open <= 2, "{logged} for {hits} and {open} open");
    // A .npy file has the same numbers, with the labels in a file beside it.
    let array = to("test.npy", &[]);
    assert!(array.ends_with(file.tensor("features").unwrap().data()), "other features");
    let beside = std::fs::read(runs.folder.path().join("test.labels.npy")).unwrap();
    assert!(beside.ends_with(file.tensor("labels").unwrap().data()));
    let from: Value =
        serde_json::from_slice(&std::fs::read(runs.folder.path().join("test.json")).unwrap()).unwrap();
    assert_eq!(from["provenance"], metadata["provenance"].as_str());
    let array = runs.folder.path().join("test.npy");
    let clustered = pauc(["cluster", path(&array), "--with", "KMeans(k: [4])", "--json"]);
    assert_eq!(json(&clustered)["rows"], 20);
}

/// Three images of 16×16 pixels in two classes, in the order of their paths.
const PICTURES: [&str; 3] = ["a b/ü, \"1\".png", "a b/2.png", "c/0.png"];

/// Writes images, and returns the dataset as `--data` takes it.
fn pictures(folder: &Path) -> String {
    for (i, name) in PICTURES.iter().enumerate() {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([60 * i as u8, 9 * x as u8, (y * y) as u8]))
            .save(file)
            .unwrap();
    }
    format!("ImageFolder(root: {folder:?}, test_fraction: 0)")
}

#[test]
fn files_of_every_kind_name_the_images() {
    let runs = Runs::get();
    let (run, folder) = (runs.cool(), tempfile::tempdir().unwrap());
    let data = pictures(&folder.path().join("pictures"));
    let mut expected: Vec<String> = PICTURES.map(str::to_string).to_vec();
    expected.sort();
    let mut features: Vec<Vec<f32>> = Vec::new();
    for file in ["x.safetensors", "x.npy", "y.csv", "x.parquet"] {
        let out = folder.path().join(file);
        let args = ["embed", path(&run), "--data", &data, "--split", "train", "--out", path(&out)];
        let done = pauc(args);
        assert_eq!(done.code, 0, "{file}: {}", done.stderr);
        let tensor = (!file.ends_with("npy") && !file.ends_with("csv")).then_some("features");
        features.push(Matrix::open(&out, tensor).unwrap().rows().data.to_vec());
        let samples = SampleColumns::read(&out, 3).unwrap();
        let mut names = samples.names.unwrap();
        // Image folders order numbers in names as numbers, as the pictures' classes show.
        assert_eq!(samples.labels, Some(vec![0, 0, 1]), "{file}: {names:?}");
        assert_eq!((samples.ids, samples.split.as_deref()), (Some(vec![0, 1, 2]), Some("train")), "{file}");
        names.sort();
        assert_eq!(names, expected, "{file}");
        let wrong = SampleColumns::read(&out, 4).unwrap_err().to_string();
        assert!(wrong.contains("3 ids for 4 samples"), "{wrong}");
    }
    assert!(features.iter().all(|same| *same == features[0] && same.len() == 3 * 8), "{features:?}");
    let csv = std::fs::read_to_string(folder.path().join("y.csv")).unwrap();
    assert!(csv.starts_with("id,label,name,f0,f1,"), "{csv}");
}

#[test]
fn nearest_images_copies_and_outliers_are_found_by_name() {
    let runs = Runs::get();
    let (run, folder) = (runs.cool(), tempfile::tempdir().unwrap());
    let root = folder.path().join("pictures");
    let data = pictures(&root);
    std::fs::rename(root.join(PICTURES[0]), root.join("a b/1.png")).unwrap();
    std::fs::copy(root.join("c/0.png"), root.join("a b/copy.png")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let (file, csv, sheet) = (at("x.safetensors"), at("n.csv"), at("sheet.png"));
    let args = ["embed", path(&run), "--data", &data, "--split", "train", "--out", path(&file)];
    assert_eq!(pauc(args).code, 0);
    let search = |more: &[&str]| {
        let args = ["neighbors", path(&file), "--tensor", "features", "-k", "2", "--duplicates", "0.9999"];
        pauc([&args[..], more].concat())
    };
    let output = ["--out", path(&csv), "--sheet", path(&sheet), "--data", &data, "--query", "c/0.png"];
    let out = search(&[&output[..], &["--outliers", "1", "--json"]].concat());
    let got = json(&out);
    let group: Vec<&str> =
        got["duplicates"][0].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!((group, got["duplicates"].as_array().unwrap().len()), (vec!["a b/copy.png", "c/0.png"], 1));
    assert_eq!(got["neighbors"][0]["name"], "c/0.png");
    assert_eq!(got["neighbors"][0]["nearest"][0]["name"], "a b/copy.png");
    // Cosines and the outlier by loops.
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rows = rows(&tensors);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: usize, b: usize| {
        dot(&rows[a], &rows[b]) / (dot(&rows[a], &rows[a]) * dot(&rows[b], &rows[b])).sqrt()
    };
    let rounding = tolerance::f32(rows[0].len() + 2, 1.0);
    let mut means = [0.0; 4];
    let text = std::fs::read_to_string(&csv).unwrap();
    let mut lines = csv_rows(&text);
    assert_eq!(lines.remove(0).join(","), "row,id,name,rank,near_row,near_id,near_name,cosine");
    assert_eq!(lines.len(), 4 * 2);
    for line in &lines {
        let [row, near] = [0, 4].map(|i: usize| line[i].parse::<usize>().unwrap());
        assert_within!(line[7].parse::<f64>().unwrap(), cosine(row, near), rounding, "{line:?}");
        means[row] += cosine(row, near) / 2.0;
    }
    let lowest = (0..4).min_by(|a, b| means[*a].total_cmp(&means[*b])).unwrap();
    assert_eq!(got["outliers"][0]["row"], lowest);
    let outlier = csv_rows(&std::fs::read_to_string(at("n.outliers.csv")).unwrap());
    assert_eq!(outlier[1][3], got["outliers"][0]["name"].as_str().unwrap());
    let copies = std::fs::read_to_string(at("n.duplicates.csv")).unwrap();
    assert!(copies.ends_with("c/0.png\n") && copies.lines().count() == 3, "{copies}");
    // One line of the query and its two nearest, of 16 pixels each, with gaps of 2.
    let drawn = image::open(&sheet).unwrap();
    assert_eq!((drawn.width(), drawn.height()), (3 * 18 + 2, 18 + 2));
    // Against a second file, a row is not left out: all are near themselves.
    let told = search(&[path(&file)]);
    assert!(told.stdout.contains("8 rows in 4 groups"), "{}", told.stdout);
    // Mistakes.
    let wrong = |more: &[&str], says: &str| {
        let out = search(more);
        assert!(out.code == 2 && out.stderr.contains(says), "no `{says}` in {} {}", out.code, out.stderr);
    };
    wrong(&["--query", "c/1.png"], "did you mean `c/0.png`?");
    wrong(&["--out", "x.txt"], "end the name in .csv");
    refused(["neighbors", path(&file), "--duplicates", "2"], 2, "between -1 and 1");
    refused(["neighbors", path(&file), "-k", "0"], 2, "invalid value '0'");
    wrong(&["--data", &data], "--sheet");
    // What cannot be drawn writes nothing.
    std::fs::rename(root.join("c/0.png"), root.join("c/5.png")).unwrap();
    let late = at("late.csv");
    let output = ["--out", path(&late), "--sheet", path(&sheet), "--data", &data, "--query", "c/0.png"];
    wrong(&output, "is `c/0.png`, but image 3 of the");
    assert!(!late.exists());
}

/// Returns the data of an atlas.
fn payload(page: &Path) -> Value {
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.ends_with("</body>\n</html>\n"));
    let start = page.find("id=\"payload\">").unwrap() + "id=\"payload\">".len();
    serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap()
}

#[test]
fn an_atlas_shows_the_images_of_a_run_or_a_file() {
    let runs = Runs::get();
    let (run, folder) = (runs.recipe("warm").join("seed1"), tempfile::tempdir().unwrap());
    // Without options: both splits, in the run's folder, with a link in its report.
    let done = pauc(["atlas", path(&run)]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let made = run.join("atlas.html");
    assert!(done.stdout.lines().any(|line| line == path(&made)), "{}", done.stdout);
    assert!(done.stdout.starts_with("120 images, 90 nearest of each: nearest images "), "{}", done.stdout);
    let got = payload(&made);
    assert_eq!(
        (&got["count"], &got["split_names"][1], &got["names"]),
        (&120.into(), &"test".into(), &Value::Null)
    );
    assert_eq!(got["classes"].as_array().unwrap().len(), 4);
    assert!(std::fs::read_to_string(run.join("report.html")).unwrap().contains("href=\"atlas.html\""));
    // The number of threads changes no byte.
    let again = folder.path().join("again.html");
    for threads in ["1", "3"] {
        assert_eq!(pauc(["atlas", path(&run), "--threads", threads, "--out", path(&again)]).code, 0);
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&made).unwrap(), "{threads} threads");
    }
    // Names with HTML, images of a file, and fewer than there are.
    let root = folder.path().join("pictures");
    let data = pictures(&root);
    std::fs::copy(root.join("c/0.png"), root.join("c/<b>&.png")).unwrap();
    let (file, page) = (folder.path().join("x.safetensors"), folder.path().join("x.atlas.html"));
    let args = ["embed", path(&run), "--data", &data, "--split", "train", "--out", path(&file)];
    assert_eq!(pauc(args).code, 0);
    let done = pauc(["atlas", path(&file), "--tensor", "features", "--data", &data]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("1 group of near-duplicates (cosine at least 0.99)"), "{}", done.stdout);
    let got = payload(&page);
    let name = |at: &Value| got["names"][at.as_u64().unwrap() as usize].as_str().unwrap();
    let mut copies: Vec<&str> = got["lists"]["duplicates"][0].as_array().unwrap().iter().map(name).collect();
    copies.sort_unstable();
    assert_eq!(copies, ["c/0.png", "c/<b>&.png"]);
    assert_eq!((&got["classes"][1], &got["thumbnails"]["cell"]), (&"c".into(), &16.into()));
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(!text.contains("<b>&.png") && text.matches("class=\"sheet\"").count() == 1);
    assert_eq!(pauc(["atlas", path(&file), "--limit", "3"]).code, 0);
    let got = payload(&page);
    assert_eq!((&got["count"], &got["thumbnails"]), (&3.into(), &Value::Null));
}

#[test]
fn an_atlas_that_cannot_be_drawn_leaves_nothing_behind() {
    let runs = Runs::get();
    let (run, folder) = (runs.cool(), tempfile::tempdir().unwrap());
    let page = folder.path().join("a.html");
    let vectors = |name: &str, values: &[f32]| {
        let file = folder.path().join(name);
        let shape = format!("({}, 2)", values.len() / 2);
        std::fs::write(&file, pauc_testing::npy::floats(&shape, values)).unwrap();
        file
    };
    let wrong = |input: &Path, more: &[&str], code: i32, says: &str| {
        refused(["atlas", path(input), "--out", path(&page)].iter().chain(more).copied(), code, says);
        assert!(!page.exists(), "{says}");
    };
    wrong(&vectors("one.npy", &[1.0, 2.0]), &[], 2, "1 image is too few for a map; expected at least 3");
    wrong(&vectors("two.npy", &[1.0; 4]), &[], 2, "2 images are too few");
    wrong(&vectors("zeros.npy", &[0.0; 8]), &[], 2, "all vectors are zeros");
    wrong(&vectors("nan.npy", &[1.0, 2.0, f32::NAN, 1.0, 1.0, 1.0]), &[], 4, "holds NaN or infinity: row 1");
    let fine = vectors("fine.npy", &[1.0, 2.0, 0.0, 1.0, 2.0, 1.0, 0.0, 0.0]);
    wrong(&fine, &["--split", "test"], 2, "--split is for runs");
    wrong(&fine, &["--limit", "2"], 2, "invalid value '2'");
    wrong(&fine, &["--data", "Shapes(count: 8)"], 2, "does not say which split it has");
    wrong(&run, &["--tensor", "features"], 2, "--tensor is for files");
    wrong(&run, &["--checkpoint", "none"], 4, "not found");
    wrong(&folder.path().join("nowhere"), &[], 4, "give the folder of a run, or a .safetensors");
    wrong(folder.path(), &[], 2, "not a run");
    let done = pauc(["atlas", path(&fine), "--out", path(&page)]);
    assert!(done.code == 0 && done.stderr.contains("warning: 1 vector consists of zeros"), "{}", done.stderr);
    refused(["atlas", path(&fine), "--out", "x.png"], 2, "end the name in .html");
    refused(["atlas", path(&fine), "--out", "nowhere/x.html"], 1, "nowhere/x.html");
    // Files beside the page are those of this test.
    let mut left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a.html", "fine.npy", "nan.npy", "one.npy", "two.npy", "zeros.npy"]);
}

fn csv_rows(text: &str) -> Vec<Vec<String>> {
    // The names here have no quotes.
    text.lines().map(|line| line.split(',').map(String::from).collect()).collect()
}

#[test]
fn images_that_are_no_files_have_no_names() {
    let runs = Runs::get();
    let out = runs.folder.path().join("unnamed.npy");
    assert_eq!(pauc(["embed", path(&runs.cool()), "--out", path(&out)]).code, 0);
    assert_eq!(SampleColumns::read(&out, 20).unwrap().names, None);
    assert!(!runs.folder.path().join("unnamed.names.npy").exists());
}

fn long(b: &[u8]) -> i64 {
    i64::from_le_bytes(b.try_into().unwrap())
}

fn rows(file: &safetensors::SafeTensors<'_>) -> Vec<Vec<f64>> {
    let t = file.tensor("features").unwrap();
    let values: Vec<f64> =
        t.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect();
    values.chunks(t.shape()[1]).map(<[f64]>::to_vec).collect()
}

fn labels(file: &safetensors::SafeTensors<'_>) -> Vec<i64> {
    file.tensor("labels").unwrap().data().chunks(8).map(long).collect()
}

/// Returns the number of queries with the right label, and the number that is undecided in `f32` because two
/// neighbors or two votes differ by less than rounding.
fn knn(bank: &[Vec<f64>], of: &[i64], queries: &[Vec<f64>], right: &[i64]) -> (usize, usize) {
    // Two norms and an inner product, for each of two neighbors.
    let rounding = 2.0 * tolerance::f32(3 * bank[0].len(), 1.0);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let (mut hits, mut open) = (0, 0);
    for (q, label) in queries.iter().zip(right) {
        let mut near: Vec<(f64, i64)> = bank.iter().zip(of).map(|(b, l)| (cosine(q, b), *l)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut votes = [0.0; 4];
        near[..5].iter().for_each(|(c, l)| votes[*l as usize] += (c / 0.07).exp());
        let own = votes[*label as usize];
        let best = (0..4).filter(|c| *c != *label as usize).map(|c| votes[c]).fold(0.0, f64::max);
        // The relative error of a vote exp(c/0.07) is the rounding of c over 0.07.
        if near[4].0 - near[5].0 <= rounding || (own - best).abs() <= (own + best) * rounding / 0.07 {
            open += 1;
        } else if own > best {
            hits += 1;
        }
    }
    (hits, open)
}

#[test]
fn a_log_is_printed_again_and_mirrored() {
    let run = Runs::get().cool();
    let told = pauc(["tail", path(&run)]);
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stdout.contains("phase training") && told.stdout.contains("knn/cos/k5"), "{}", told.stdout);
    assert!(told.stdout.trim_end().lines().last().unwrap().starts_with("finished after"), "{}", told.stdout);
    assert_eq!(std::fs::read_to_string(run.join("log.txt")).unwrap(), told.stdout);
    refused(["tail", "nowhere"], 2, "not a run");
    // Parse the event file: complete records up to its end, with the tags of everything logged.
    let all = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().path());
    let files: Vec<_> = all.filter(|p| path(p).contains("events.out.tfevents.")).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    let (mut at, mut records) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        records.push(String::from_utf8_lossy(&bytes[at + 12..at + 12 + length]).into_owned());
        at += 12 + length + 4;
    }
    assert!(records[0].ends_with("brain.Event:2"), "{records:?}");
    for tag in ["train/loss", "term/InfoNce", "chance/InfoNce", "probe/knn/cos/k5/t0.07"] {
        assert!(records.iter().any(|r| r.contains(tag)), "no {tag} in {records:?}");
    }
}

#[test]
fn a_recipe_is_compared_with_its_stored_metrics() {
    let runs = Runs::get();
    let recipe = runs.folder.path().join("cool.ron");
    let out = runs.folder.path().join("runs");
    let args = ["reproduce", path(&recipe), "--out", path(&out)];
    // No other test uses this recipe's run and stored metrics.
    refused(args, 4, "`--update` stores those of this run");
    assert_eq!(pauc(args.into_iter().chain(["--update"])).code, 0);
    let same = pauc(args);
    assert_eq!(same.code, 0, "{}", same.stderr);
    assert!(same.stdout.contains("reproduced") && same.stderr.contains("is finished; comparing"), "{same:?}");
    let file = runs.folder.path().join("expected/cool.json");
    let mut stored: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let value = stored["metrics"]["rankme/features"]["value"].as_f64().unwrap();
    stored["metrics"]["rankme/features"]["value"] = (value + 10.0).into();
    stored["simd"] = "abacus".into();
    std::fs::write(&file, stored.to_string()).unwrap();
    refused(args, 3, "rankme/features: expected");
    refused(args, 3, "the instruction set differs: abacus then");
    // Training again with the same seed gives the same metrics.
    let again = runs.folder.path().join("again");
    stored["metrics"]["rankme/features"]["value"] = value.into();
    std::fs::write(&file, stored.to_string()).unwrap();
    let fresh = pauc(["reproduce", path(&recipe), "--out", path(&again)]);
    assert_eq!(fresh.code, 0, "{}", fresh.stderr);
}

#[test]
fn recipes_are_compared_over_their_seeds() {
    let runs = Runs::get();
    let (cool, warm) = (runs.recipe("cool"), runs.recipe("warm"));
    let got = json(&pauc(["compare", path(&cool), path(&warm), "--json"]));
    assert_eq!(got["groups"][0]["runs"].as_array().unwrap().len(), 2);
    let changes = got["beside"][0]["recipe"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0]["path"], "objective[0].term.temperature");
    let delta = &got["beside"][0]["metrics"][0];
    assert_eq!((&delta["first"]["n"], &delta["paired"]["n"]), (&2.into(), &2.into()));
    let table = pauc(["compare", path(&cool), path(&warm)]).stdout;
    assert!(table.contains("objective[0].term.temperature: 0.2 → 0.5"), "{table}");
    let (cool, warm) = (path(&cool), path(&warm));
    assert_eq!(pauc(["compare", cool, warm, "--within", "1000"]).code, 0);
    refused(["compare", cool, warm, "--within", "0"], 3, "differ by more than --within");
}

/// Returns the tags of a table's row that begins with a metric, without those of the metric.
fn row<'a>(page: &'a str, metric: &str) -> &'a str {
    let head = format!("<code>{}</code></td>", metric.replace('/', "/<wbr>"));
    let at = page.find(&head).unwrap_or_else(|| panic!("no {metric}")) + head.len();
    page[at..].split("</tr>").next().unwrap()
}

#[test]
fn runs_are_shown_side_by_side() {
    let runs = Runs::get();
    let (cool, warm) = (runs.recipe("cool"), runs.recipe("warm"));
    let out = runs.folder.path().join("compare.html");
    let done = pauc(["report", path(&cool), path(&warm), "--out", path(&out)]);
    assert_eq!((done.code, done.stdout.trim()), (0, path(&out)), "{}", done.stderr);
    let page = std::fs::read_to_string(&out).unwrap();
    for part in
        ["4 runs side by side", "objective[0].term.temperature", "Means over seeds", "<code>0.5</code>"]
    {
        assert!(page.contains(part), "no {part:?}");
    }
    let logged = runs.logged();
    let knn = logged.as_array().unwrap().iter().find(|m| m["kind"] == "accuracy").unwrap();
    let value = format!("<td>{:.2} %</td>", 100.0 * knn["value"].as_f64().unwrap());
    assert!(row(&page, knn["name"].as_str().unwrap()).starts_with(&value), "no {value}");
    // Seeds of one recipe are no different recipes.
    let seeds = pauc(["report", path(&cool), "--out", path(&out)]);
    assert_eq!(seeds.code, 0, "{}", seeds.stderr);
    let page = std::fs::read_to_string(&out).unwrap();
    assert!(page.contains("only their seeds differ") && page.contains("2 runs side by side"));
}

#[test]
fn several_runs_that_make_no_page_are_refused() {
    let runs = Runs::get();
    let (cool, all) = (runs.cool(), runs.recipe("cool"));
    let (run, other) = (path(&cool), runs.recipe("warm").join("seed0"));
    let out = runs.folder.path().join("none.html");
    let out = path(&out);
    refused(["report", run, path(&other)], 2, "add --out compare.html");
    refused(["report", run, "--out", out], 2, "a page with --out has several runs");
    refused(["report", run, run, "--out", out], 2, "same recipe and seed");
    refused(["report", run, path(&all), "--out", out], 2, "same recipe and seed");
    refused(["report", run, "nowhere", "--out", out], 2, "nowhere: not a run");
    refused(["report", run, path(&other), "--out", "page.txt"], 2, "ends in .html");
    refused(["report", run, path(&other), "--out", "nowhere/page.html"], 1, "create its folder");
    // A run that has logged nothing.
    let empty = runs.folder.path().join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    let info = std::fs::read_to_string(cool.join("run.json")).unwrap().replace("\"seed\": 0", "\"seed\": 7");
    std::fs::write(empty.join("run.json"), info.replace("\"seed\":0", "\"seed\":7")).unwrap();
    std::fs::copy(cool.join("recipe.resolved.ron"), empty.join("recipe.resolved.ron")).unwrap();
    refused(["report", run, path(&empty), "--out", out], 2, "no metrics.jsonl");
    std::fs::write(empty.join("metrics.jsonl"), "not json\n").unwrap();
    refused(["report", run, path(&empty), "--out", out], 2, "have a metric or a curve in common");
    let said = pauc(["report", run, path(&empty), "--out", out]).stderr;
    assert!(said.contains("metrics.jsonl, line 1: not an event"), "{said}");
    assert!(!Path::new(out).exists());
}

#[test]
fn mistakes_have_their_messages_and_exit_codes() {
    let runs = Runs::get();
    let run = runs.cool();
    let run = path(&run);
    refused(["eval", run, "--probe", "Kn(k: 5)"], 2, "did you mean `Knn`?");
    refused(["eval", run, "--probe", "Knn(k: 0)"], 2, "E0106");
    refused(["eval", "nowhere", "--probe", "Knn()"], 2, "not a run");
    let gray = ["--data", "FashionMini()"];
    refused(["eval", run, "--probe", "Knn()"].into_iter().chain(gray), 2, "have 1 channels");
    refused(["eval", run, "--probe", "Knn()", "--checkpoint", "none"], 4, "not found");
    refused(["embed", run, "--out", "x.txt"], 2, "end the name in .safetensors");
    refused(["embed", run, "--out", "nowhere/x.npy"], 1, "nowhere");
    let other = runs.recipe("warm").join("seed0/checkpoints/last.safetensors");
    let out = runs.folder.path().join("y.npy");
    refused(["embed", run, "--out", path(&out), "--checkpoint", path(&other)], 4, "belongs to recipe");
    let all = runs.recipe("cool");
    refused(["compare", run, path(&all)], 2, "same recipe and seed");
    refused(["compare", run, "nowhere"], 2, "not a run");
}
