//! Events as lines for people: on the console, in `log.txt`, and where a run is followed.

use crate::events::{self, Event, Subject};
use crate::verdict::is_accuracy;

/// The line that an event is to a person, if it is one.
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
            // The many numbers of coagulation are for the report; here stand the accuracies.
            let accuracy = |m: &&events::Metric| is_accuracy(&m.name);
            let shown =
                e.metrics.iter().filter(accuracy).map(|m| format!("{} {:.1} %", m.name, m.value * 100.0));
            let shown: Vec<_> = shown.collect();
            (!shown.is_empty()).then(|| format!("epoch {:.0}: {who}{}", e.epoch, shown.join("  ")))
        }
        Event::Phase(e) => Some(format!("step {}: phase {}; {}", e.step, e.name, e.text)),
        Event::Warning(e) => Some(format!("warning: {}", e.text)),
        Event::End(e) => {
            let status = match e.status {
                events::Status::Finished => "finished",
                events::Status::Interrupted => "interrupted",
                events::Status::Failed => "failed",
            };
            Some(format!("{status} after {:.1} s", e.seconds))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_happened() {
        let metric = |name: &str, value| events::Metric { name: name.into(), value };
        let probe = |metrics| {
            let subject = Subject::RawPixels;
            line(&Event::Probe(events::Probe { step: 9, epoch: 2.0, seconds: 1.0, subject, metrics }))
        };
        let shown = probe(vec![metric("knn/cos/k20/t0.07", 0.791), metric("rankme/features", 3.0)]);
        assert_eq!(shown.as_deref(), Some("epoch 2: raw pixels: knn/cos/k20/t0.07 79.1 %"));
        assert_eq!(probe(vec![metric("rankme/features", 3.0)]), None);
        let end = events::End { step: 9, seconds: 1.25, status: events::Status::Interrupted };
        assert_eq!(line(&Event::End(end)).as_deref(), Some("interrupted after 1.2 s"));
    }
}
