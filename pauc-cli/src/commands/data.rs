//! `data` and `bench data`: a look at what a recipe reads.

use super::here;
use crate::args::{BenchDataArgs, DataArgs, DataCommand, IndexArgs, PreviewArgs, VerifyArgs};
use crate::{Failure, console};
use pauc::data::inspect::{self, Index, Stats};
use pauc::data::preview::{PreviewOptions, preview};
use pauc::data::{ViewPipeline, atomic, throughput};
use pauc::train::diagnostic::Diagnostics;
use pauc::train::recipe::{LoadError, Recipe};
use pauc::traits::dataset::Splits;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Carries out a verb of `data`.
pub fn data(command: DataCommand) -> Result<ExitCode, Failure> {
    match command {
        DataCommand::Fetch(args) => super::fetch::fetch(&args),
        DataCommand::Verify(args) => verify(&args),
        DataCommand::Index(args) => index(&args),
        DataCommand::Stats(args) => stats(&args),
        DataCommand::Preview(args) => sheet(&args),
    }
}

/// A recipe file, or a dataset as recipes write it.
fn load(data: &DataArgs, more: &[String]) -> Result<Recipe, Failure> {
    let set: Vec<String> = data.change.set.iter().chain(more).cloned().collect();
    let path = Path::new(&data.what);
    let found = if data.what.contains('(') && !path.is_file() {
        let text = format!("Recipe(name: \"data\", data: {}, objective: [])", data.what);
        Recipe::parse("the dataset", &text, &set).map_err(LoadError::Recipe)
    } else {
        Recipe::load(path, &set)
    };
    let render = |found: Diagnostics| Failure::new(2, found.render(console::color()).trim_end());
    found.map(|f| f.0).map_err(|e| match e {
        LoadError::File { .. } => Failure::new(2, format!("error: {e}")),
        LoadError::Recipe(found) => render(found),
    })
}

fn open(recipe: &Recipe) -> Result<Splits, Failure> {
    Ok(recipe.data.open(&here()?)?)
}

/// The recipe with every unreadable picture left out and listed, where its dataset can do that.
fn tolerant(data: &DataArgs) -> Result<Recipe, Failure> {
    let strict = load(data, &[])?;
    let tolerant = ["data", "data.of"].map(|at| format!("{at}.on_error=Skip(max: {})", u32::MAX));
    Ok(tolerant.into_iter().find_map(|set| load(data, &[set]).ok()).unwrap_or(strict))
}

fn verify(args: &VerifyArgs) -> Result<ExitCode, Failure> {
    let splits = open(&tolerant(&args.data)?)?;
    let bad = inspect::verify(&splits);
    let differences = match &args.index {
        // What cannot be read has no hash; it is listed already.
        Some(path) => Index::read(path)?.differences(&inspect::index(&splits)?),
        None => Vec::new(),
    };
    let images = splits.train.len() + splits.test.as_ref().map_or(0, |t| t.len());
    if args.json {
        let bad: Vec<_> =
            bad.iter().map(|s| serde_json::json!({ "path": s.path, "reason": s.reason })).collect();
        println!(
            "{}",
            serde_json::json!({
                "data": splits.description, "images": images, "unreadable": bad, "differences": differences,
            })
        );
    } else {
        println!("{}", splits.description);
        bad.iter().for_each(|s| println!("{}: {}", s.path, s.reason));
        differences.iter().for_each(|d| println!("{d}"));
        println!("{images} images can be read, {} cannot", bad.len());
        if args.index.is_some() {
            println!("{} differences from the index", differences.len());
        }
    }
    Ok(ExitCode::from(if bad.is_empty() && differences.is_empty() { 0 } else { 4 }))
}

fn index(args: &IndexArgs) -> Result<ExitCode, Failure> {
    let index = inspect::index(&open(&load(&args.data, &[])?)?)?;
    index.write(&args.out)?;
    println!("{}: {} images, {}", args.out.display(), index.images.len(), &index.check[..16]);
    Ok(ExitCode::SUCCESS)
}

fn stats(args: &crate::args::StatsArgs) -> Result<ExitCode, Failure> {
    let stats = inspect::stats(&open(&load(&args.data, &[])?)?)?;
    if args.json {
        println!("{}", serde_json::json!(stats));
    } else {
        print!("{}", table(&stats));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(stats: &Stats) -> String {
    let mut lines = vec![stats.description.clone()];
    for s in &stats.splits {
        let three = |v: [usize; 3]| format!("{} to {}, median {}", v[0], v[2], v[1]);
        let channel = |of: fn(&(f32, f32)) -> f32| {
            s.channels.iter().map(|c| format!("{:.4}", of(c))).collect::<Vec<_>>().join(" ")
        };
        lines.push(format!("\n{}: {} images", s.split, s.images));
        lines.push(format!("  height     {}", three(s.heights)));
        lines.push(format!("  width      {}", three(s.widths)));
        lines.push(format!("  mean       {}", channel(|c| c.0)));
        lines.push(format!("  deviation  {}", channel(|c| c.1)));
        let width = s.classes.keys().map(|c| c.chars().count()).max().unwrap_or(0);
        lines.extend(s.classes.iter().map(|(class, n)| format!("  {class:<width$}  {n}")));
    }
    let (groups, shared) = (stats.duplicates.len(), stats.shared_groups);
    lines.push(format!("\n{groups} groups of equal images, {shared} of them in both splits"));
    lines.extend(stats.duplicates.iter().take(10).map(|g| format!("  {}", g.join(" = "))));
    lines.push(String::new());
    lines.join("\n")
}

fn views(recipe: &Recipe, splits: &Splits) -> Result<[ViewPipeline; 2], Failure> {
    let (shape, statistics) = (splits.train.shape(), &splits.statistics);
    let wrong = |e| Failure::new(2, format!("error: {e}"));
    Ok([
        ViewPipeline::training(&recipe.views, shape, statistics).map_err(wrong)?,
        ViewPipeline::evaluation(&recipe.views, shape, statistics).map_err(wrong)?,
    ])
}

fn sheet(args: &PreviewArgs) -> Result<ExitCode, Failure> {
    let recipe = load(&args.data, &[])?;
    let splits = open(&recipe)?;
    let [training, evaluation] = views(&recipe, &splits)?;
    let options = PreviewOptions { images: args.images.get(), seed: recipe.train.seed, epoch: args.epoch };
    let png = preview(&*splits.train, &training, &evaluation, options)?;
    atomic::write(&args.out, &png)?;
    let count = args.images.get().min(splits.train.len());
    println!(
        "{}: {count} images, each with its evaluation view and its {} views of epoch {}",
        args.out.display(),
        training.len(),
        args.epoch
    );
    Ok(ExitCode::SUCCESS)
}

/// Measures how fast views are made.
pub fn bench(args: &BenchDataArgs) -> Result<ExitCode, Failure> {
    let recipe = load(&args.data, &[])?;
    let splits = open(&recipe)?;
    let [training, _] = views(&recipe, &splits)?;
    let time = Duration::from_secs_f64(args.seconds.clamp(0.0, 3600.0));
    let batch = recipe.train.batch.min(splits.train.len().try_into().unwrap_or(recipe.train.batch));
    let mut all = Vec::new();
    for threads in &args.loader_threads {
        all.push(throughput::measure(&splits.train, &training, batch, *threads, time)?);
    }
    if args.json {
        println!(
            "{}",
            serde_json::json!({ "data": splits.description, "views": training.len(), "throughput": all })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}, {} views", splits.description, training.len());
    println!(
        "images/s of     loader        read     augment   normalise   (the last three: one thread's share)"
    );
    for s in &all {
        println!(
            "{:>2} threads  {:>10.0}  {:>10.0}  {:>10.0}  {:>10.0}",
            s.threads, s.images_per_second, s.read, s.augment, s.normalise
        );
    }
    Ok(ExitCode::SUCCESS)
}
