//! What the probes say: the trained representation against random weights and raw pixels.

use crate::data::ReportData;
use crate::events::Subject;

/// One accuracy of the three representations, as fractions.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The metric, protocol included.
    pub metric: String,
    /// The same network before the first step.
    pub random_init: Option<f64>,
    /// The pixels themselves.
    pub raw_pixels: Option<f64>,
    /// The trained representation, at the last probe.
    pub trained: Option<f64>,
}

impl Verdict {
    /// The trained accuracy minus that of the better of the two baselines, if there is one.
    pub fn gain(&self) -> Option<f64> {
        let best = self.random_init.into_iter().chain(self.raw_pixels).reduce(f64::max)?;
        Some(self.trained? - best)
    }

    /// The verdict in a sentence, for a metric with a trained value.
    pub fn sentence(&self) -> Option<String> {
        let trained = self.trained?;
        let against = |name: &str, base: Option<f64>| {
            let points = 100.0 * (trained - base?);
            let size = format!("{:.1} points", points.abs());
            Some(match points {
                p if p >= 0.05 => format!("{size} above {name}"),
                p if p <= -0.05 => format!("{size} below {name}"),
                _ => format!("level with {name}"),
            })
        };
        let parts = [against("raw pixels", self.raw_pixels), against("random weights", self.random_init)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let start = format!("{:.1} % by {}", 100.0 * trained, self.metric);
        Some(if parts.is_empty() { format!("{start}.") } else { format!("{start}: {}.", parts.join(", ")) })
    }
}

/// Whether a metric is an accuracy: the kNN and linear probes, without the details that they report under it.
pub fn is_accuracy(name: &str) -> bool {
    let details = ["/l2", "/converged"];
    (name.starts_with("knn/") || name.starts_with("linear/")) && !details.iter().any(|d| name.ends_with(d))
}

/// The verdicts by every accuracy of the run.
pub fn verdicts(data: &ReportData) -> Vec<Verdict> {
    let of = |metric: &str| Verdict {
        metric: metric.to_string(),
        random_init: data.latest(Subject::RandomInit, metric),
        raw_pixels: data.latest(Subject::RawPixels, metric),
        trained: data.latest(Subject::Trained, metric),
    };
    data.metrics().into_iter().filter(|m| is_accuracy(m)).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_which_side_of_the_baselines_it_is() {
        let verdict = |random_init, raw_pixels| Verdict {
            metric: "knn/cos/k20/t0.07".into(),
            random_init,
            raw_pixels,
            trained: Some(0.861),
        };
        let both = verdict(Some(0.7), Some(0.8615));
        assert_eq!(
            both.sentence().unwrap(),
            "86.1 % by knn/cos/k20/t0.07: 0.1 points below raw pixels, 16.1 points above random weights."
        );
        assert!((both.gain().unwrap() + 0.0005).abs() < 1e-12);
        assert_eq!(verdict(None, None).sentence().unwrap(), "86.1 % by knn/cos/k20/t0.07.");
        assert_eq!(verdict(None, None).gain(), None);
    }

    #[test]
    fn details_of_a_probe_are_no_accuracies() {
        let is = [
            "knn/cos/k20/t0.07",
            "linear/lbfgs/standardised",
            "linear/lbfgs/standardised/l2",
            "rankme/features",
        ];
        assert_eq!(is.map(is_accuracy), [true, true, false, false]);
    }
}
