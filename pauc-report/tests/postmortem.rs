//! A postmortem as text and as a section of the report, from files that a run, an earlier version or a stranger
//! wrote.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod synthetic;

use pauc_report::plot::{Chart, Series};
use pauc_report::postmortem::causes::causes;
use pauc_report::postmortem::story::story;
use pauc_report::postmortem::*;
use pauc_report::{write_figures, write_report};
use std::path::Path;

/// The smallest PNG file: one white pixel, gray.
const PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\
    \x01\x01\0\x1b\xb6\xeeV\0\0\0\0IEND\xaeB`\x82";

fn step(step: u64, loss: f64, gradient: f64, spread: f64) -> StepRecord {
    let term = |name: &str, value| TermRecord {
        name: name.into(),
        value: Number(value),
        weight: 1.0,
        temperature: None,
    };
    let part = |part: &str, norm| PartNorm { part: part.into(), norm: Number(norm) };
    StepRecord {
        step,
        loss: Some(Number(loss)),
        terms: vec![term("InfoNce", loss / 2.0), term("Variance", loss / 2.0)],
        learning_rate: Some(0.06),
        gradient_norm: Some(Number(gradient)),
        gradient_by_part: vec![part("encoder", 0.6 * gradient), part("projector", 0.8 * gradient)],
        spread: Some(spread),
        rank: Some(5.0),
        embedding_norms: Some(Lengths { least: Number(0.5), mean: Number(1.0), most: Number(2.0) }),
    }
}

/// A run whose features became NaN at step 21, without a reason that a rule knows.
fn plain() -> Postmortem {
    let failed = StepRecord {
        step: 21,
        loss: Some(Number(f64::NAN)),
        learning_rate: Some(0.06),
        ..StepRecord::default()
    };
    Postmortem {
        step: 21,
        total_steps: 1000,
        what: "InfoNce".into(),
        first: Some(FirstTensor {
            kind: TensorKind::Features,
            name: "view 1".into(),
            shape: vec![64, 16],
            index: vec![3, 5],
            value: Number(f64::INFINITY),
            non_finite: 7,
            elements: 1024,
        }),
        steps: (1..=20).map(|s| step(s, 4.0, 1.0, 0.5)).chain([failed]).collect(),
        parameters: vec![PartSize {
            part: "encoder".into(),
            norm: Number(12.0),
            largest: Number(0.4),
            largest_in: "encoder.0.weight".into(),
        }],
        settings: Settings { optimizer: "Sgd".into(), learning_rate: Some(0.06), ..Settings::default() },
        samples: (0..64).collect(),
        ..Postmortem::default()
    }
}

fn kinds(p: &Postmortem) -> Vec<CauseKind> {
    causes(p).iter().map(|c| c.kind).collect()
}

#[test]
fn each_rule_needs_its_evidence() {
    assert_eq!(kinds(&plain()), [CauseKind::Unknown]);
    let mut dead = plain();
    dead.steps[..20].iter_mut().skip(8).for_each(|s| s.spread = Some(0.003));
    assert_eq!(kinds(&dead), [CauseKind::DeadNetwork]);
    assert!(
        causes(&dead)[0].evidence.contains("collapsed since step 9: spread 0.003 then"),
        "{:?}",
        causes(&dead)
    );
    dead.steps[..20].iter_mut().for_each(|s| s.spread = Some(0.5));
    dead.steps[..20].iter_mut().skip(4).for_each(|s| s.gradient_norm = Some(Number(0.0)));
    assert_eq!(kinds(&dead), [CauseKind::DeadNetwork], "a gradient of zero");
    assert!(
        causes(&dead)[0].evidence.ends_with("its gradient had vanished since step 5: 0 then"),
        "{:?}",
        causes(&dead)
    );
    dead.steps[19].gradient_norm = Some(Number(1.0));
    assert_eq!(kinds(&dead), [CauseKind::Unknown], "it had come back");

    let mut growing = plain();
    growing.steps[..20].iter_mut().for_each(|s| s.gradient_norm = Some(Number(2f64.powi(s.step as i32))));
    // The median of 2¹ to 2¹⁰ is 2⁶; 2²⁰ / 2⁶ = 16384. The last update is 0.06 · 2²⁰ long, the parameters 12.
    assert_eq!(kinds(&growing), [CauseKind::LearningRate, CauseKind::GrowingGradient]);
    assert!(
        causes(&growing)[0].evidence.contains("the update of step 20 was 62915 long"),
        "{:?}",
        causes(&growing)
    );
    assert!(causes(&growing)[1].evidence.ends_with("at step 20: 16384 times"), "{:?}", causes(&growing));
    let mut narrow = growing.clone();
    narrow.steps[..20].iter_mut().for_each(|s| s.spread = Some(0.01));
    assert_eq!(kinds(&narrow), kinds(&growing), "the embeddings explode along one direction");
    // Clipping keeps the update short.
    growing.settings.clip_gradient = Some(1.0);
    assert_eq!(kinds(&growing), [CauseKind::GrowingGradient]);

    let mut large = plain();
    large.parameters[0].largest = Number(5e4);
    assert_eq!(kinds(&large), [CauseKind::LearningRate]);
    // The update of the last step is 0.06 long, and those of twenty 1.2: less than a tenth of the 12 of the parameters,
    // so they have not been made by these steps if there were steps before.
    large.parameters[0].norm = Number(13.0);
    large.steps.remove(0);
    large.last_good = Some(GoodCheckpoint::default());
    large.causes = causes(&large);
    assert_eq!(large.causes[0].title, "the parameters were far too large before", "{large:?}");
    let text = story(&large, Path::new("run"));
    assert!(text.contains("pauc-cli run run/recipe.resolved.ron --set optimizer.lr=0.006"), "{text}");
    large.parameters[0].largest = Number(f64::NAN);
    assert_eq!(kinds(&large), [CauseKind::LearningRate]);

    let mut half = plain();
    half.settings.precision = Some("Tf32".into());
    assert_eq!(
        (kinds(&half), causes(&half)[0].remedies[0].set[0].as_str()),
        (vec![CauseKind::Precision], "train.cuda.precision=F32")
    );
    half.settings.precision = Some("F32".into());
    assert_eq!(kinds(&half), [CauseKind::Unknown]);
}

#[test]
fn a_term_is_to_blame_only_for_healthy_inputs() {
    let mut term = plain();
    let first = term.first.as_mut().unwrap();
    (first.kind, first.name) = (TensorKind::Term, "InfoNce".into());
    assert_eq!(kinds(&term), [CauseKind::Term]);
    term.terms = vec![TermEvidence {
        name: "InfoNce".into(),
        temperature: Some(1e-5),
        temperature_path: Some("objective[0].term.temperature".into()),
        largest_logit: Some(Number(9e4)),
        ..TermEvidence::default()
    }];
    assert_eq!(kinds(&term), [CauseKind::Temperature]);
    term.terms[0].largest_logit = Some(Number(9e3));
    assert_eq!(kinds(&term), [CauseKind::Term]);
    term.parameters[0].largest = Number(1e20);
    assert_eq!(kinds(&term), [CauseKind::LearningRate]);
}

#[test]
fn a_few_affected_samples_of_one_color_point_to_the_data() {
    let suspect = Suspect { id: 7, name: "black.png".into(), constant: true, ..Suspect::default() };
    let mut data = Postmortem { affected_samples: 2, suspects: vec![suspect], ..plain() };
    assert_eq!(kinds(&data), [CauseKind::Data]);
    assert!(
        causes(&data)[0].evidence.contains("2 of 64 samples")
            && causes(&data)[0].evidence.contains("black.png")
    );
    data.affected_samples = 64;
    assert_eq!(kinds(&data), [CauseKind::Unknown], "all samples");
    data.affected_samples = 2;
    data.suspects[0].constant = false;
    assert_eq!(kinds(&data), [CauseKind::Unknown], "an image like any other");
}

#[test]
fn the_story_is_short_and_has_the_numbers() {
    let mut p = plain();
    p.last_good = Some(GoodCheckpoint { path: "run/checkpoints/good.safetensors".into(), step: Some(16) });
    p.affected_samples = 1;
    let why = "NaN or infinite: the features of view 1".to_string();
    let (name, class) = ("cat/1.png".to_string(), Some("cat".to_string()));
    p.suspects = vec![Suspect { id: 3, label: Some(0), class, name, why, ..Suspect::default() }];
    p.causes = causes(&p);
    let text = story(&p, Path::new("runs/it's mine"));
    assert!(text.lines().count() <= 15, "{text}");
    for part in [
        "InfoNce is not finite at step 21 of 1000",
        "the features of view 1: 7 of 1024 values, the first at [3, 5] is inf",
        "step   loss  InfoNce  Variance  gradient  rate  spread   rank",
        "  20  4.000    2.000     2.000     1.000  0.06  0.5000  5.000",
        "  21    NaN        –         –         –  0.06       –      –",
        "1 of 64: cat/1.png (class 0, cat): NaN or infinite: the features of view 1",
        "good.safetensors, step 16",
        r"pauc-cli resume 'runs/it'\''s mine' --from good --set optimizer.lr=0.006",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// Writes a run with a postmortem and pictures of its samples, and returns the page.
fn page(p: &Postmortem, picture: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    synthetic::write(dir.path()).unwrap();
    std::fs::write(dir.path().join(FILE), serde_json::to_string(p).unwrap()).unwrap();
    for sample in 0..p.suspects.len() {
        for view in [None, Some(0), Some(1)] {
            std::fs::write(dir.path().join(Postmortem::picture(sample, view)), picture).unwrap();
        }
    }
    let page = std::fs::read_to_string(write_report(dir.path()).unwrap()).unwrap();
    (dir, page)
}

/// A run that failed after all steps of the synthetic log.
fn at_the_end() -> Postmortem {
    let suspect = |id| Suspect {
        id,
        name: format!("<script>{id}</script>.png"),
        why: "3 < 4 & \"so\"".into(),
        class: Some("<b>".into()),
        label: Some(1),
        views: 2,
        ..Suspect::default()
    };
    let mut p = Postmortem { step: 1_000_000, suspects: (0..2).map(suspect).collect(), ..plain() };
    p.causes = causes(&p);
    p
}

#[test]
fn the_page_shows_the_pictures_and_escapes_the_names() {
    let (dir, page) = page(&at_the_end(), PNG);
    assert_eq!(page.matches("<img src=\"data:image/png;base64,iVBORw0KGgo").count(), 6);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;0&lt;"), "names are text");
    assert!(page.contains("class 1, &lt;b&gt;") && page.contains("3 &lt; 4 &amp; &quot;so&quot;"));
    for part in [
        "InfoNce is not finite at step 1000000",
        "Loss of the last steps",
        "What to try",
        "optimizer.lr=0.006",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("✓ Healthy"), "a run that failed was not well");
    let figures = write_figures(dir.path()).unwrap();
    assert!(figures.iter().any(|path| path.ends_with("postmortem-gradient.svg")));
}

#[test]
fn a_run_that_went_on_says_so() {
    let p = Postmortem { step: 12, ..at_the_end() };
    let (_dir, page) = page(&p, PNG);
    assert!(page.contains("was resumed since") && page.contains("✓ Healthy"));
}

#[test]
fn what_is_no_small_picture_is_left_out() {
    let huge = [PNG, &vec![0; 300 << 10]].concat();
    for picture in [b"GIF89a".as_slice(), b"", &huge] {
        let (_dir, page) = page(&at_the_end(), picture);
        assert!(!page.contains("<img"), "{} bytes", picture.len());
    }
    // More samples and views than a run writes.
    let mut many = at_the_end();
    many.suspects = vec![Suspect { views: usize::MAX, ..many.suspects[0].clone() }; 50];
    let (_dir, page) = page(&many, PNG);
    assert_eq!(page.matches("<img").count(), SHOWN_SAMPLES * 3);
}

#[test]
fn files_of_earlier_versions_and_damaged_ones() {
    let old = r#"{"step": 3, "what": "the term InfoNce", "place": "its value is NaN", "samples": [5, 6],
        "gradient_norms": [{"step": 1, "norm": 0.5}, {"step": 2, "norm": 80.0}], "tensors": "postmortem.safetensors"}"#;
    let dir = tempfile::tempdir().unwrap();
    synthetic::write(dir.path()).unwrap();
    let file = dir.path().join(FILE);
    std::fs::write(&file, old).unwrap();
    let p = Postmortem::read(dir.path()).unwrap().unwrap();
    assert_eq!((p.step, p.steps.len(), p.samples.as_slice()), (3, 2, &[5, 6][..]));
    let text = story(&p, dir.path());
    assert!(text.contains("the term InfoNce is not finite at step 3") && text.contains("80.00"), "{text}");
    assert!(std::fs::read_to_string(write_report(dir.path()).unwrap()).unwrap().contains("at step 3"));
    // Of a future version.
    std::fs::write(
        &file,
        r#"{"step": 3, "first": {"kind": "weather"}, "causes": [{"kind": "sun"}], "new": 1}"#,
    )
    .unwrap();
    let p = Postmortem::read(dir.path()).unwrap().unwrap();
    assert_eq!((p.first.unwrap().kind, p.causes[0].kind), (TensorKind::Other, CauseKind::Unknown));
    std::fs::write(&file, "{").unwrap();
    let error = write_report(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("postmortem.json: not a postmortem") && error.contains("delete the file"),
        "{error}"
    );
}

#[test]
fn numbers_that_are_not_finite_survive_the_file() {
    let numbers = [1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(Number);
    let text = serde_json::to_string(&numbers).unwrap();
    assert_eq!(text, r#"[1.5,"NaN","inf","-inf"]"#);
    let read: Vec<Number> = serde_json::from_str(&text).unwrap();
    assert_eq!(format!("{read:?}"), format!("{numbers:?}"));
    assert!(serde_json::from_str::<Number>("null").unwrap().0.is_nan());
}

#[test]
fn steps_have_whole_numbers_at_their_axis() {
    let ticks = |last: f64| {
        let series = vec![Series { name: "loss".into(), points: vec![(1.0, 0.0), (last, 1.0)] }];
        let svg = Chart { series, ..Chart::default() }.svg();
        [">2</text>", ">1.5</text>", ">2.0</text>"].map(|tick| svg.contains(tick))
    };
    assert_eq!(ticks(5.0), [true, false, false]);
    assert_eq!(ticks(4.5), [false, true, true]);
}
