//! Every verb's help has an example; the examples in the help and the commands in the book run, on small
//! data.
#![cfg(unix)] // the examples are a shell's lines
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{pauc, root};
use std::path::Path;
use std::process::Command;

/// Returns the verbs in a help text, under `Commands:` or in groups: lines with a name and a summary.
fn verbs(help: &str) -> Vec<String> {
    let names = help.lines().filter_map(|line| line.strip_prefix("  "));
    let names = names.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(String::from).collect()
}

/// Collects the examples of a verb and its subcommands, each with the verb.
fn examples(verb: &[String], found: &mut Vec<(String, String)>) {
    let help = pauc(verb.iter().map(String::as_str).chain(["--help"]));
    assert_eq!(help.code, 0, "{verb:?}: {}", help.stderr);
    let below = verbs(&help.stdout);
    // Join lines that were wrapped for the terminal; an empty line ends an example.
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
    // `compare` treats recipes that differ only in their name as the same.
    let rate = if name == "pcl" { 0.02 } else { 0.06 };
    format!(
        r#"Recipe(version: 1, name: "{name}", data: Shapes(count: 96, size: 16, classes: 4),
    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    encoder: ConvNet(channels: [4, 8], grid: 1), projector: Mlp(dims: [6]),
    objective: [(term: InfoNce(temperature: 0.2))], optimizer: Sgd(lr: {rate}),
    train: (epochs: 1, batch: 24), probes: [Knn(k: 5)])"#
    )
}

/// Creates recipes, runs, images and tensors with the names in the examples.
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
    // CIFAR-10's binary format: a label, then 3072 values.
    let images = |n: u8| {
        (0..n).flat_map(|i| [vec![i % 10], vec![i.wrapping_mul(7); 3072]].concat()).collect::<Vec<u8>>()
    };
    write("data/cifar10/data_batch_1.bin", &images(20));
    write("data/cifar10/test_batch.bin", &images(10));
    for i in 0..24u32 {
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
        let mut line = quick(&example.replace("/etc/bash_completion.d/", ""));
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

/// Shortens what a command measures and trains, for a test.
fn quick(line: &str) -> String {
    let line = if line.contains(" run photos") || line.contains(" new recipe ") {
        format!("{} --measure 0.05", line.replace("--budget 1h", "").replace("--budget 8h", ""))
            + " --budget 1s"
    } else {
        line.to_string()
    };
    // A test runs examples of several pages in one folder.
    if line.contains(" run photos") { line + " --force" } else { line }
}

/// Splits a shell line into words, without their quotes; `;` is a separate word.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if "'\"".contains(c) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None if c == ';' => words.extend(word.take().into_iter().chain([";".to_string()])),
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns `pauc-cli` and its arguments in a line, directly or through `cargo run`; `None` if the line does
/// not run it.
fn pauc_cli_of(line: &str) -> Option<Vec<String>> {
    let words = words(line);
    let program = if line.starts_with("cargo run") && line.contains("-p pauc-cli") {
        words.iter().position(|word| word == "--")?
    } else {
        // In `cargo build -p pauc-cli` it is the package.
        (0..words.len()).find(|&i| words[i] == "pauc-cli" && (i == 0 || words[i - 1] != "-p"))?
    };
    let ends = |word: &&String| ![";", "&&", "|"].contains(&word.as_str());
    let arguments = words[program + 1..].iter().take_while(ends).cloned();
    Some(["pauc-cli".to_string()].into_iter().chain(arguments).collect())
}

/// Returns the commands in the console blocks of a page, one per line.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(|block| {
        let joined = block.replace("\\\n", " ");
        joined.lines().map(String::from).collect::<Vec<_>>()
    });
    let prompt = |line: String| line.strip_prefix("$ ").or(line.strip_prefix("# ")).map(String::from);
    lines.filter_map(prompt).collect()
}

/// Returns the code spans in the prose of a page.
fn spans(text: &str) -> Vec<String> {
    let outside_of_blocks = text.split("```").step_by(2);
    outside_of_blocks.flat_map(|prose| prose.split('`').skip(1).step_by(2).map(String::from)).collect()
}

/// Returns the README and the book's pages, with their names without extension.
fn pages() -> Vec<(String, String)> {
    let book = std::fs::read_dir(root().join("docs/src")).unwrap().map(|entry| entry.unwrap().path());
    let pages =
        book.filter(|path| path.extension().is_some_and(|e| e == "md")).chain([root().join("README.md")]);
    let read = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(&path).unwrap())
    };
    pages.map(read).collect()
}

/// Returns the long options of a verb and its subcommands.
fn options(verb: &clap::Command) -> Vec<String> {
    let own = verb.get_arguments().filter_map(|argument| argument.get_long()).map(String::from);
    own.chain(verb.get_subcommands().flat_map(options)).collect()
}

#[test]
fn options_that_the_book_mentions_exist() {
    // Options of cargo.
    let cargo = ["features", "test"].map(String::from);
    let mut program = pauc_cli::definition();
    program.build();
    let known = [options(&program), cargo.to_vec()].concat();
    let mut count = 0;
    for (page, text) in pages() {
        for span in spans(&text) {
            let Some(name) = span.strip_prefix("--").and_then(|rest| rest.split_whitespace().next()) else {
                continue;
            };
            assert!(known.iter().any(|option| option == name), "{page}: no verb has the option `{span}`");
            count += 1;
        }
    }
    assert!(count > 10, "only {count} options were recognized");
}

#[test]
fn lines_are_split_like_a_shell_does() {
    assert_eq!(words("a 'b c' d=\"e f\"; g ''"), ["a", "b c", "d=e f", ";", "g", ""]);
    let line = "for r in *.ron; do time pauc-cli reproduce $r; done";
    assert_eq!(pauc_cli_of(line).unwrap(), ["pauc-cli", "reproduce", "$r"]);
    assert_eq!(pauc_cli_of("cargo run -p pauc-cli -- list").unwrap(), ["pauc-cli", "list"]);
    assert_eq!(pauc_cli_of("cargo build -p pauc-cli"), None);
}

#[test]
fn commands_of_the_book_can_be_parsed() {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument,
    };
    let parse = |words: &[String]| pauc_cli::definition().try_get_matches_from(words);
    let mut parsed = 0;
    for (page, text) in pages() {
        for line in commands(&text) {
            let Some(words) = pauc_cli_of(&line) else { continue };
            parse(&words).unwrap_or_else(|e| panic!("{page}: {line}\n{e}"));
            parsed += 1;
        }
        // A command in the prose may omit arguments, but must not use unknown ones.
        for span in spans(&text).into_iter().filter(|span| span.starts_with("pauc-cli ")) {
            let words: Vec<String> = words(&span);
            if span.contains(['…', '$']) || words.iter().any(|word| word == "VERB") {
                continue;
            }
            let incomplete = [DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument];
            if let Err(e) = parse(&words) {
                assert!(incomplete.contains(&e.kind()), "{page}: {span}\n{e}");
            }
            parsed += 1;
        }
    }
    assert!(parsed > 50, "only {parsed} commands were recognized");
}

#[test]
fn commands_of_the_book_run() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let imagenet = folder.path().join("recipes/imagenet");
    std::fs::create_dir(&imagenet).unwrap();
    for recipe in std::fs::read_dir(root().join("recipes/imagenet")).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(recipe.path(), imagenet.join(recipe.file_name())).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_pauc-cli"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let run = |line: &str| {
        let done = Command::new("sh")
            .args(["-c", line])
            .current_dir(folder.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "`{line}`: {}\n{}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    };
    // The book compares with these metrics.
    run("pauc-cli reproduce recipes/quickstart.ron --update");
    let mut count = 0;
    // These pages measure, or need a GPU.
    let measures = |page: &str| page == "cuda" || page.starts_with("performance");
    for (_, text) in pages().into_iter().filter(|(page, _)| !measures(page)) {
        for line in
            commands(&text).iter().filter(|line| line.starts_with("pauc-cli ") && !line.contains("cuda:"))
        {
            run(&quick(line));
            count += 1;
        }
    }
    assert!(count >= 15, "only {count} commands");
}
