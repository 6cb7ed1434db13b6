//! Negatives, prototypes and terms.

use super::Choice;
use crate::suggest::negatives::{self, PER_BATCH};
use crate::suggest::{Goal, count};

/// Where negatives come from.
pub(super) struct Negatives {
    pub(super) is_in_batch: bool,
    pub(super) queue: Option<Choice<usize>>,
}

/// The smallest batch that has enough negatives of its own.
const OWN_NEGATIVES: usize = 128;

impl Negatives {
    pub(super) fn new(goal: Goal, images: usize, batch: usize, epochs: usize) -> Self {
        let own = goal == Goal::Embeddings && batch >= OWN_NEGATIVES;
        // A queue is only full after some steps; a short run would not profit.
        let steps = (images / batch.max(1)).max(1) * epochs;
        let queue = negatives::queue(images, batch).filter(|q| !own && steps * batch > 4 * q);
        let queue = queue.map(|length| {
            let why = format!(
                "negatives for batches of {batch}; at most half of the {} training images, so that few images meet their own \
                 past keys.",
                count(images)
            );
            Choice::new(length, why)
        });
        Negatives { is_in_batch: queue.is_none(), queue }
    }

    /// Chooses the momentum of the encoder that computes the keys in the queue.
    pub(super) fn momentum(&self, steps: usize) -> Option<Choice<f64>> {
        self.queue.as_ref()?;
        let momentum = match steps {
            0..20_000 => 0.99,
            20_000..100_000 => 0.996,
            _ => 0.999,
        };
        let why = format!(
            "Keys in a queue need a slowly moving encoder: its weights are a mean over about {:.0} of the {} steps.",
            1.0 / (1.0 - momentum),
            count(steps)
        );
        Some(Choice::new(momentum, why))
    }
}

/// Returns the epochs before the first clustering.
pub(super) fn warm_up(epochs: usize) -> usize {
    (epochs * 3 / 10).max(1)
}

/// A clusterer.
pub(super) struct Clusters {
    pub(super) k: Vec<usize>,
    pub(super) start: usize,
    pub(super) every: usize,
    pub(super) why: String,
}

impl Clusters {
    pub(super) fn text(self) -> Choice<String> {
        let k: Vec<String> = self.k.iter().map(usize::to_string).collect();
        let (start, every) = (self.start, self.every);
        Choice::new(
            format!("KMeans(k: [{}], start: Epochs({start}), every: Epochs({every}))", k.join(", ")),
            self.why,
        )
    }
}

/// Clusterings in a run, at most.
const CLUSTERINGS: usize = 30;

pub(super) fn clusterer(goal: Goal, images: usize, batch: usize, epochs: usize) -> Option<Clusters> {
    if goal == Goal::Embeddings {
        return None;
    }
    let (k, start) = (negatives::prototypes(images, batch), warm_up(epochs));
    let every = (epochs / CLUSTERINGS).max(1);
    let finest = k.last().copied().unwrap_or(2);
    let why = format!(
        "{finest} prototypes have {} of the {} training images on average; a batch of {batch} can see up to {} ({PER_BATCH} per \
         image). Before epoch {start}, the embeddings are not worth clustering; then at most {CLUSTERINGS} clusterings.",
        images / finest,
        count(images),
        count(PER_BATCH * batch)
    );
    Some(Clusters { k, start, every, why })
}

pub(super) fn objective(goal: Goal, is_in_batch: bool, batch: usize, from: usize) -> Choice<Vec<String>> {
    let (negatives, from_where) = if is_in_batch {
        ("InBatch", format!("the other images of a batch of {batch}"))
    } else {
        ("Queue", "the keys in the queue".to_string())
    };
    let mut terms = vec![format!("(term: InfoNce(temperature: 0.2, negatives: {negatives}))")];
    let tells = format!("Tells each image from {from_where}.");
    if goal == Goal::Embeddings {
        return Choice::new(terms, tells);
    }
    let prototypes =
        |term: &str, weight: f64| format!("(term: {term}, weight: {weight:?}, from: Epochs({from}))");
    terms.extend([
        prototypes("ProtoNce()", 1.0),
        prototypes("Alignment(level: Prototypes)", 0.1),
        prototypes("Uniformity(level: Prototypes)", 0.1),
        prototypes("Correlation(level: Prototypes, kind: Gram)", 0.1),
    ]);
    let why = format!(
        "{tells} From epoch {from}, also pulls images to their prototypes, and keeps prototypes apart."
    );
    Choice::new(terms, why)
}
