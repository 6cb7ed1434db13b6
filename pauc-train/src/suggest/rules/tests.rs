use super::*;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::suggest::text::{self, Heading};
use dfdx::prelude::Cpu;
use pauc_data::survey::{Range, Unreadable};
use pauc_traits::dataset::Place;

fn all(n: usize) -> Range {
    Range { least: n, median: n, most: n }
}

/// A survey of `train` images of `side` pixels in color, all of them readable.
fn survey(train: usize, side: usize, classes: usize) -> Survey {
    let bytes = (3 * side * side) as f64;
    Survey {
        description: "images".into(),
        train,
        classes: (0..classes).map(|c| train / classes + usize::from(c < train % classes)).collect(),
        read: train.min(5000),
        heights: all(side),
        widths: all(side),
        short_sides: all(side),
        is_one_size: true,
        channels: 3,
        seconds_per_image: bytes * 5e-9,
        bytes_per_image: bytes,
        ..Survey::default()
    }
}

/// A machine of two cores with 16 GiB that needs as much time as the encoders have pixels and widths.
fn machine(survey: &Survey) -> Machine {
    let candidates = candidates(picture(survey), survey.short_sides.median, false);
    let speeds = candidates.into_iter().enumerate().map(|(i, candidate)| Speed {
        images_per_second: [2e6, 4e5, 1e5][i] / (candidate.size as f64).powi(2),
        seconds_per_view: (candidate.size as f64).powi(2) * 5e-8,
        candidate,
    });
    Machine {
        device: "cpu".into(),
        is_gpu: false,
        threads: 2,
        memory: Some(16 << 30),
        speeds: speeds.collect(),
    }
}

fn folder() -> Data {
    Data::parse("ImageFolder(root: \"images\")").unwrap()
}

fn chosen(survey: &Survey, goal: Goal, budget: &str) -> Choices {
    let data = folder();
    choose(&Request { survey, data: &data, goal, budget: budget.parse().unwrap() }, &machine(survey))
}

/// Returns the findings of `check` about the recipe for images that are drawn instead of read.
fn findings(survey: &Survey, goal: Goal, budget: &str) -> String {
    let (data, machine) = (folder(), machine(survey));
    let budget = budget.parse().unwrap();
    let choices = choose(&Request { survey, data: &data, goal, budget }, &machine);
    let heading = Heading { name: "images", data: &data, survey, machine: &machine, goal, budget };
    let text = text::recipe(&heading, &choices).unwrap();
    // The data itself is not there: images of its number, size and classes are drawn when they are asked for.
    let labels = survey.is_labeled();
    let images = images(&Request { survey, data: &data, goal, budget });
    let [train, test] = match &choices.part {
        Some(part) => part.value.map(|n| n * survey.classes.len().max(1)),
        None => [images.train, images.test],
    };
    let drawn = format!(
        "data=Counted(train: {}, test: {}, side: {}, classes: {})",
        train.min(images.train),
        test.min(images.test),
        survey.short_sides.median,
        if labels { survey.classes.len() } else { 0 }
    );
    let (recipe, source) =
        Recipe::parse("images.ron", &text, &[drawn]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    match Plan::new(&Cpu::default(), recipe, source, &Place { memory: machine.memory, ..Place::at("") }) {
        Ok(plan) => plan.warnings.render(false),
        Err(e) => format!("{e}\n{text}"),
    }
}

pauc_traits::component! {
    /// Images of which only number, size and labels are known; for tests.
    pub struct Counted: Dataset {
        /// Training images.
        pub train: usize,
        /// Test images.
        pub test: usize,
        /// Height and width.
        pub side: usize,
        /// Classes; 0: no labels.
        pub classes: usize,
    }
}

impl pauc_traits::Dataset for Counted {
    fn open(&self, _: &Place) -> pauc_traits::Result<pauc_traits::dataset::Splits> {
        let shape = pauc_traits::ImageShape { height: self.side, width: self.side, channels: 3 };
        let labeled = self.classes > 0;
        let published = pauc_traits::dataset::Published {
            train: self.train,
            test: self.test,
            shape: Some(shape),
            channels: 3,
            classes: self.classes,
            labeled,
        };
        let mut splits = published.splits("Counted");
        splits.test = splits.test.filter(|_| self.test > 0);
        Ok(splits)
    }
}

#[test]
fn check_finds_nothing_from_20_images_to_a_million() {
    for images in [20, 21, 33, 50, 100, 240, 1000, 5000, 60_000, 1_281_167] {
        for side in [8, 28, 32, 64, 65, 224, 500] {
            for classes in [0, 2, 10] {
                for (goal, budget) in
                    [(Goal::Embeddings, "10min"), (Goal::Clusters, "10min"), (Goal::Clusters, "8h")]
                {
                    let survey = survey(images, side, classes);
                    let found = findings(&survey, goal, budget);
                    assert_eq!(
                        found, "",
                        "{images} images of {side} pixels, {classes} classes, {goal:?} {budget}"
                    );
                }
            }
        }
    }
}

#[test]
fn check_finds_nothing_for_odd_numbers() {
    for (images, classes) in [(20, 20), (40, 20), (1000, 1000), (5000, 1000), (50_000, 1), (2001, 7)] {
        for goal in [Goal::Embeddings, Goal::Clusters] {
            let found = findings(&survey(images, 48, classes), goal, "2min");
            assert_eq!(found, "", "{images} images in {classes} classes, {goal:?}");
        }
    }
}

#[test]
fn views_follow_the_kind_of_picture() {
    let of = |side, gray| picture(&Survey { gray, ..survey(1000, side, 0) });
    assert_eq!((of(28, 1.0), of(64, 0.96)), (Picture::SmallGray, Picture::SmallGray));
    assert_eq!(
        (of(65, 1.0), of(32, 0.9), of(500, 0.0)),
        (Picture::LargeGray, Picture::Small, Picture::Photograph)
    );
    for picture in [Picture::SmallGray, Picture::LargeGray, Picture::Small, Picture::Photograph] {
        let text = format!("Recipe(name: \"v\", views: {}, objective: [])", views(picture, 64));
        assert!(Recipe::parse("views", &text, &[]).is_ok(), "{text}");
    }
    // The quickstart's crop.
    assert!(views(Picture::SmallGray, 28).contains("size: 28, scale: (0.3, 1.0)"));
}

#[test]
fn images_are_never_enlarged_beyond_the_smallest_size() {
    for side in [1, 15, 16, 40, 64, 65, 95, 130, 224, 4000] {
        for picture in [Picture::SmallGray, Picture::LargeGray, Picture::Small, Picture::Photograph] {
            let small = matches!(picture, Picture::SmallGray | Picture::Small);
            for c in candidates(picture, side, false) {
                assert!(c.size <= side.max(if small { 16 } else { 64 }), "{side} {c:?}");
            }
        }
    }
}

#[test]
fn a_longer_budget_gets_a_larger_encoder_and_more_epochs() {
    let survey = survey(50_000, 32, 10);
    let of = |budget| chosen(&survey, Goal::Embeddings, budget);
    let (short, long) = (of("10min"), of("8h"));
    assert!(short.encoder.value.starts_with("ConvNet"), "{}", short.encoder.value);
    assert!(long.encoder.value.starts_with("ResNet18"), "{}", long.encoder.value);
    for (choices, budget) in [(short, 600.0), (long, 28_800.0)] {
        assert!(choices.seconds <= budget, "{} s of {budget}", choices.seconds);
        assert!(choices.part.is_none());
    }
}

#[test]
fn a_budget_too_short_for_one_epoch_gets_a_part_of_the_data() {
    let survey = survey(1_281_167, 400, 1000);
    let choices = chosen(&survey, Goal::Embeddings, "10min");
    let [per_class, test] = choices.part.as_ref().unwrap().value;
    assert!(per_class >= 1 && test >= 1 && per_class < 1281);
    assert!(choices.epochs.value >= 4 && choices.seconds <= 600.0, "{choices:?}");
    let why = &choices.part.unwrap().why;
    let why = why.replace('\u{a0}', " ");
    assert!(why.contains("1 153 167") && why.contains("budget is 10 min"), "{why}");
}

#[test]
fn labels_decide_about_test_images_and_probes() {
    let setting = |choices: &Choices, field: &str| {
        choices.data.iter().find(|(name, _)| *name == field).map(|(_, choice)| choice.value.clone())
    };
    let flat = chosen(&survey(240, 200, 0), Goal::Clusters, "10min");
    assert_eq!(setting(&flat, "test_fraction").unwrap(), "0");
    assert_eq!(flat.baselines, [""; 0]);
    assert!(flat.probes.value.iter().all(|p| p.starts_with("Rank") || p.starts_with("Coagulation")));
    let labeled = chosen(&survey(240, 200, 11), Goal::Clusters, "10min");
    assert_eq!(setting(&labeled, "test_fraction").unwrap(), "0.2");
    assert_eq!(labeled.baselines, ["RawPixels", "RandomInit"]);
    for probe in ["Knn(k: 5,", "Linear(", "Clusters(", "Coagulation(", "Rank("] {
        assert!(labeled.probes.value.iter().any(|p| p.starts_with(probe)), "no {probe}");
    }
    // Two images of each class: one of them is held out.
    let pairs = chosen(&survey(40, 200, 20), Goal::Embeddings, "10min");
    assert_eq!(setting(&pairs, "test_fraction").unwrap(), "0.25");
    // One image of each class: nothing can be held out.
    let single = chosen(&survey(20, 200, 20), Goal::Embeddings, "10min");
    assert_eq!(setting(&single, "test_fraction").unwrap(), "0");
    assert_eq!(single.probes.value, ["Rank(every: Fraction(0.2))"]);
    // A test split of its own.
    let split = Survey { test: 100, test_is_labeled: true, ..survey(1000, 32, 10) };
    assert_eq!(setting(&chosen(&split, Goal::Embeddings, "10min"), "test_fraction"), None);
}

#[test]
fn unreadable_images_are_skipped_and_named() {
    let on_error = |survey: &Survey| {
        let choices = chosen(survey, Goal::Embeddings, "10min");
        choices.data.into_iter().find(|(field, _)| *field == "on_error").unwrap().1
    };
    let bad =
        |n: usize| (0..n).map(|i| Unreadable { path: format!("{i}.jpg"), reason: "torn".into() }).collect();
    let fine = survey(240, 100, 0);
    assert_eq!(on_error(&fine).value, "Fail");
    let some = Survey { unreadable: bad(3), ..fine };
    let choice = on_error(&some);
    assert!(
        choice.value == "Skip(max: 4)" && choice.why.contains("3 of the 240") && choice.why.contains("0.jpg")
    );
    // 50 of 5000 in a sample: 600 of 60 000 are expected.
    let many = Survey { unreadable: bad(50), ..survey(60_000, 32, 0) };
    assert_eq!(on_error(&many).value, "Skip(max: 1210)");
    // All images that were read are fine, and the others are quick to read; or not.
    assert_eq!(on_error(&survey(60_000, 32, 0)).value, "Skip(max: 61)");
    let slow = on_error(&survey(1_281_167, 500, 0));
    assert!(slow.value == "Fail" && slow.why.contains("data verify"), "{slow:?}");
}

#[test]
fn sizes_count_the_images_that_can_be_read() {
    // 300 of 400 images are broken: a queue and batches for 100.
    let unreadable = (0..300).map(|i| Unreadable { path: i.to_string(), reason: "torn".into() }).collect();
    let survey = Survey { unreadable, ..survey(400, 100, 0) };
    let data = folder();
    let request =
        Request { survey: &survey, data: &data, goal: Goal::Clusters, budget: "10min".parse().unwrap() };
    assert_eq!(images(&request).train, 100);
    let choices = choose(&request, &machine(&survey));
    assert!(choices.batch.value <= 50 && choices.queue.is_none_or(|queue| queue.value <= 50));
    assert!(choices.clusterer.unwrap().value.contains("k: [2, 4]"));
}

#[test]
fn large_images_are_shrunk_and_kept_in_memory() {
    let photographs =
        Survey { short_sides: Range { least: 300, median: 1000, most: 4000 }, ..survey(3000, 1000, 0) };
    let choices = chosen(&photographs, Goal::Embeddings, "8h");
    let side = choices.data.iter().find(|(field, _)| *field == "shorter_side").unwrap();
    assert_eq!(side.1.value, "256", "{choices:?}");
    let fixed = Data::parse("ImageFolder(root: \"a\", shorter_side: Some(300))").unwrap();
    assert!(!fixed.may_set("shorter_side"));
}

#[test]
fn small_memory_splits_batches() {
    let survey = survey(60_000, 224, 0);
    let small = Machine { memory: Some(1 << 30), ..machine(&survey) };
    assert_eq!(micro_batch(&machine(&survey), 224, 32), None);
    let part = micro_batch(&small, 224, 256).unwrap();
    assert!(part.value < 256 && part.value.is_power_of_two() && part.why.contains("1.0 GiB"), "{part:?}");
}
