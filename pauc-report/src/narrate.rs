//! Events as lines of text, for the console, `log.txt` and `pauc-cli tail`.

use crate::axis::significant;
use crate::events::{self, Event, Subject};
use pauc_traits::probe::MetricKind;

/// Formats an event as a line of text; `None` if it is not shown.
pub fn line(event: &Event) -> Option<String> {
    match event {
        Event::Step(e) => {
            let term = |t: &events::Term| match t.value {
                Some(v) => format!("{} {v:.3}", t.name),
                None => format!("{} –", t.name),
            };
            Some(format!(
                "step {:>6}  epoch {:>6.2}  loss {:.3}  {}  {:.0} images/s",
                e.step,
                e.epoch,
                e.loss,
                e.terms.iter().map(term).collect::<Vec<_>>().join("  "),
                e.images_per_second,
            ))
        }
        Event::Gradients(e) => Some(gradients(e)),
        Event::Clustering(e) => {
            let level = |l: &events::ClusterLevel| format!("k {} imbalance {:.2}", l.k, l.imbalance);
            let levels: Vec<_> = e.levels.iter().map(level).collect();
            Some(format!("epoch {:.0}: clustered in {:.1} s ({})", e.epoch, e.seconds, levels.join("; ")))
        }
        Event::Probe(e) => {
            let who = match e.subject {
                Subject::Trained => "",
                Subject::RandomInit => "random-init encoder: ",
                Subject::RawPixels => "raw pixels: ",
            };
            // Only accuracies are shown; the report has the other metrics.
            let accuracies = e.metrics.iter().filter(|m| m.kind == MetricKind::Accuracy);
            let shown: Vec<_> = accuracies.map(|m| format!("{} {:.1} %", m.name, m.value * 100.0)).collect();
            (!shown.is_empty()).then(|| format!("epoch {:.0}: {who}{}", e.epoch, shown.join("  ")))
        }
        Event::Health(e) => Some(health(e)),
        Event::Stages(e) => Some(stages(e)),
        Event::Phase(e) => Some(format!("step {}: phase {}; {}", e.step, e.name, e.text)),
        Event::Warning(e) => Some(format!("warning: {}", e.text)),
        Event::Change(e) => Some(format!("after step {}: {}", e.step, e.text)),
        Event::Diverged(e) => Some(format!("failed: {}", e.text)),
        Event::End(e) => {
            let status = match e.status {
                events::Status::Finished => "finished",
                events::Status::Interrupted => "interrupted",
                events::Status::Failed => "failed",
            };
            Some(format!("{status} after {:.1} s", e.seconds))
        }
        Event::Unknown => None,
    }
}

/// Formats the norms, and the pair of terms that disagree most.
fn gradients(e: &events::Gradients) -> String {
    let norm = |t: &events::TermGradient| format!("{} {}", t.name, significant(t.norm));
    let mut line = format!(
        "step {:>6}  epoch {:>6.2}  gradients {}",
        e.step,
        e.epoch,
        e.terms.iter().map(norm).collect::<Vec<_>>().join("  ")
    );
    if e.terms.len() > 1 && e.total.is_finite() {
        line.push_str(&format!("  sum {}", significant(e.total)));
    }
    let pairs = e.pairs().filter(|(_, _, cosine)| cosine.is_finite());
    if let Some((a, b, cosine)) = pairs.min_by(|a, b| a.2.total_cmp(&b.2)) {
        line.push_str(&format!("  lowest cosine {cosine:.2} ({a} · {b})"));
    }
    line
}

fn health(e: &events::Health) -> String {
    let mut line = format!("epoch {:.0}: spread {:.2}  effective rank {:.1}", e.epoch, e.spread, e.rank);
    let stuck: Vec<_> = e.terms.iter().filter(|t| t.is_stuck(1)).map(|t| t.name.as_str()).collect();
    if !stuck.is_empty() {
        line.push_str(&format!("  no better than chance: {}", stuck.join(", ")));
    }
    line
}

/// Formats the time of each stage, longest first, without stages below half a percent.
fn stages(e: &events::Stages) -> String {
    let mut line = format!("epoch {:.0}: {:.0} images/s", e.epoch, e.images_per_second);
    let mut parts: Vec<_> =
        e.stages.iter().map(|s| (s.name.as_str(), 100.0 * s.seconds / e.seconds)).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (name, percent) in parts.iter().filter(|p| p.1 >= 0.5) {
        line.push_str(&format!("  {name} {percent:.0} %"));
    }
    if let Some(l) = e.loader.as_ref().filter(|l| l.images > 0) {
        line.push_str(&format!("  loader {:.0} images/s", l.images_per_second()));
    }
    if let Some(bytes) = e.peak_memory_bytes {
        line.push_str(&format!("  {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::probe::Metric;

    #[test]
    fn gradients_are_one_line_with_the_pair_that_disagrees_most() {
        let term = |name: &str, norm, cosines| events::TermGradient { name: name.into(), norm, cosines };
        let terms = vec![
            term("InfoNce", 0.0123456, vec![]),
            term("ProtoNce", 2.0, vec![0.5]),
            term("VicReg", f64::NAN, vec![-0.254, f64::NAN]),
        ];
        let shown = |terms: &[events::TermGradient], total| {
            line(&Event::Gradients(events::Gradients { step: 40, epoch: 0.5, terms: terms.to_vec(), total }))
        };
        assert_eq!(
            shown(&terms, 2.5).unwrap(),
            "step     40  epoch   0.50  gradients InfoNce 0.01235  ProtoNce 2.000  VicReg NaN or infinite  sum 2.500  \
             lowest cosine -0.25 (InfoNce · VicReg)"
        );
        assert_eq!(shown(&terms[..1], 0.01).unwrap(), "step     40  epoch   0.50  gradients InfoNce 0.01235");
        let apart = [terms[0].clone(), term("CosinePrediction", 1.0, vec![f64::NAN])];
        let want = "step     40  epoch   0.50  gradients InfoNce 0.01235  CosinePrediction 1.000";
        assert_eq!(shown(&apart, f64::NAN).unwrap(), want);
    }

    #[test]
    fn events_are_formatted_as_lines() {
        let accuracy = || Metric::accuracy("knn/cos/k20/t0.07", 0.791).into();
        let rank = || Metric::new("rankme/features", 3.0).into();
        let probe = |metrics| {
            let subject = Subject::RawPixels;
            line(&Event::Probe(events::Probe { step: 9, epoch: 2.0, seconds: 1.0, subject, metrics }))
        };
        let shown = probe(vec![accuracy(), rank()]);
        assert_eq!(shown.as_deref(), Some("epoch 2: raw pixels: knn/cos/k20/t0.07 79.1 %"));
        assert_eq!(probe(vec![rank()]), None);
        let terms = [("InfoNce", 0), ("ProtoNce", 2), ("Uniformity", 9)];
        let terms = terms.map(|(name, epochs_at_chance)| events::TermMean {
            regularizer: name == "Uniformity",
            name: name.into(),
            mean: 5.0,
            chance: Some(5.0),
            epochs_at_chance,
        });
        let health = |terms: &[events::TermMean]| {
            let terms = terms.to_vec();
            line(&Event::Health(events::Health { step: 9, epoch: 2.0, terms, spread: 0.617, rank: 21.44 }))
        };
        assert_eq!(health(&terms[..1]).unwrap(), "epoch 2: spread 0.62  effective rank 21.4");
        assert_eq!(
            health(&terms).unwrap(),
            "epoch 2: spread 0.62  effective rank 21.4  no better than chance: ProtoNce"
        );
        let stage = |name: &str, seconds| events::StageTime { name: name.into(), seconds };
        let stages = events::Stages {
            step: 9,
            epoch: 2.0,
            seconds: 2.0,
            images_per_second: 512.4,
            stages: vec![stage("data", 0.004), stage("forward", 0.6), stage("backward", 1.396)],
            peak_memory_bytes: Some(300 << 20),
            loader: Some(events::LoaderTime { images: 1000, read: 0.05, augment: 0.1, normalize: 0.05 }),
        };
        assert_eq!(
            line(&Event::Stages(stages)).unwrap(),
            "epoch 2: 512 images/s  backward 70 %  forward 30 %  loader 5000 images/s  300 MiB"
        );
        let end = events::End { step: 9, seconds: 1.25, status: events::Status::Interrupted };
        assert_eq!(line(&Event::End(end)).as_deref(), Some("interrupted after 1.2 s"));
    }
}
