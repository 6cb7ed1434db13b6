//! The codes of recipe errors, and what `explain E0103` says of them.

/// A code with its explanation.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Such as `E0103`.
    pub code: &'static str,
    /// One line.
    pub title: &'static str,
    /// What causes it and what to do, with an example.
    pub text: &'static str,
}

macro_rules! codes {
    ($($code:literal $title:literal $text:literal)*) => {
        /// E01xx: reading the text. E02xx: rules across fields. E04xx: sweeps. Terms' own rules have codes in
        /// [`pauc_losses::findings`].
        pub const CODES: &[Code] = &[$(Code { code: $code, title: $title, text: $text }),*];
    };
}

codes! {
    "E0101" "the text is not RON"
    "A bracket, comma or quote is missing or misplaced.\n\nA recipe is `Recipe(field: value, …)`; lists stand in `[…]`, components are `Name(field: value)`, text stands in double quotes, comments start with `//`."
    "E0102" "unknown name"
    "No component of this name is registered, or an option has other values.\n\n`pauc-cli list` prints all components; `pauc-cli explain NAME` prints one. Names are written in CamelCase, as in `InfoNce(temperature: 0.2)`."
    "E0103" "unknown field"
    "The component or section has no field of this name.\n\nThe help line lists the fields that exist; `pauc-cli explain NAME` says what each means and its default."
    "E0104" "missing field"
    "A field without a default has to be written.\n\nExample: `KMeans(k: [100])`: how many prototypes there are cannot be guessed."
    "E0105" "field given twice"
    "A field may stand only once. Remove one of the two."
    "E0106" "a value of the wrong type or outside its range"
    "Temperatures have to be greater than 0, probabilities and momenta between 0 and 1, counts at least 1. Whole numbers are written without a point.\n\nExample: `InfoNce(temperature: -1)` is refused where it is written."
    "E0107" "a `--set` that leads nowhere"
    "`--set path=value` names a value by its path, such as `train.epochs=5` or `objective[0].term.temperature=0.1`; items of lists are counted from 0. Fields left to their defaults may be set, items of lists have to exist."
    "E0201" "a term reads the queue, and there is none"
    "Terms such as `InfoNce(negatives: Queue)` compare with past keys. Add `queue: 4096` to the recipe; a queue also needs a momentum encoder."
    "E0202" "a momentum encoder is needed, and there is none"
    "Queues, and terms that read momentum keys, need the slowly moving copy of the encoder. Add `momentum_encoder: Ema(momentum: 0.99)`."
    "E0203" "a term reads prototypes, and there is no clusterer"
    "Prototype terms read the clusters of the training set. Add `clusterer: KMeans(k: [100, 250])`."
    "E0204" "class labels are needed, and the data has none"
    "Supervised terms, label clusterers and accuracy probes need labels. Use a labeled dataset, or remove the component."
    "E0205" "more prototypes than samples"
    "A clustering cannot have more prototypes than there are training samples. The message says both numbers; lower `k`."
    "E0206" "the queue does not fit"
    "A queue shorter than one batch would overwrite keys before they were read. A queue as long as the training set holds every sample's own past key as its negative; that is a warning."
    "E0207" "the batch does not fit the data"
    "A batch cannot hold more samples than the training set; incomplete batches are dropped. Lower `train.batch`."
    "E0208" "the encoder cannot take these images"
    "The views produce images that the encoder's strides, channels or patches cannot work with. The message names the layer and the shapes. Change the crop size, or the encoder."
    "E0209" "too few views"
    "A term compares two views of each image; the recipe makes fewer. Write `views: [(count: 2, ops: […])]`."
    "E0210" "nothing to train"
    "The objective is empty, or no term is active at the first step. At least one term has to start at step 0, or the encoder would be moved by nothing but weight decay."
    "E0211" "nothing uses the clusterer"
    "The recipe clusters the features, but no term reads prototypes and no probe looks at them: time spent for nothing. A warning."
    "E0212" "a prototype term starts before there are prototypes"
    "Prototype terms wait for the first clustering (`clusterer.start`). A `from` before it has no effect. A warning."
    "E0213" "images of different sizes reach the encoder"
    "The views do not fix the size of the images. Begin them with `RandomResizedCrop(size: 32)`, or with `Resize` and `CenterCrop`."
    "E0214" "the data cannot be opened"
    "The data named by the recipe is missing or damaged, so that rules that need its size were not checked. `check` warns; `run` stops with exit code 4."
    "E0215" "an accuracy probe has no test split"
    "kNN and linear probes train on the training split and are scored on the test split; this dataset has none."
    "E0216" "the predictor does not fit"
    "Predictions are compared with keys, which are the projector's outputs: both have one width. A predictor that no term reads is a warning; terms such as `CosinePrediction` read predictions."
    "E0217" "the parts of a batch do not fit it"
    "`train.micro_batch` says how many images of a batch pass through the network at once. A batch is cut into parts of this size, and with batch normalization each part is normalized by its own mean and variance, as in data-parallel training: then a batch in parts is not the same as the whole batch."
    "E0218" "a frozen part that the encoder does not have"
    "`frozen` names parameters of the encoder, or what they belong to: `\"conv1\"` freezes `conv1.weight`, `\"layer1\"` everything below it. `pauc-cli explain recipe.ron` lists the layers."
    "E0219" "accumulated batches are no larger batch"
    "`train.accumulate: 4` steps the optimizer once after four batches, with the mean of their gradients. Each batch has only its own negatives, prototypes and batch statistics: contrastive terms do not see a batch four times as large. A batch that is too large for memory is written as `batch: 1024, micro_batch: 256`: there terms see all of it, at the cost of a second forward pass. A warning."
    "E0220" "a learning-rate scale of a part that is not there"
    "`lr_scale` names parameters of the network or what they belong to: `\"encoder.layer1\"` is everything below it, `\"projector\"` the whole projector. What a term learns itself begins with the term's name. A part may be named once."
    "E0221" "settings of a probe that do not go together"
    "A probe asks for what it cannot do, such as `LowShot` around a probe that reads no labels, or a grid without values. It would fail after the training, at the first time that it is due."
    "E0401" "a sweep without values, or with lists that do not fit each other"
    "`over` lists paths with their values. With `combine: Zip` the first values of all paths make the first run, the second ones the second: all lists have one length. `combine: Grid` takes every value with every other."
    "E0402" "random values in a sweep that draws none"
    "`Uniform`, `LogUniform` and `Integers` say where random values come from; they go with `combine: Random(runs: 20)`."
    "E0403" "two values for one place, or seeds among the values"
    "A path stands once, and not inside another one: a component and a field of it cannot both vary. Seeds are listed in `seeds`; runs that differ only in their seed are one row of the table, with mean and standard deviation."
}

/// All codes: those of reading, of rules across fields, and of terms' own rules.
pub fn all() -> impl Iterator<Item = Code> {
    let of_terms = pauc_losses::findings::ALL.iter().map(|&(code, title, text)| Code { code, title, text });
    CODES.iter().copied().chain(of_terms)
}

/// The explanation of a code.
pub fn find(code: &str) -> Option<Code> {
    all().find(|c| c.code.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    #[test]
    fn codes_are_unique_and_cover_what_the_parser_raises() {
        let mut codes: Vec<_> = super::all().map(|c| c.code).collect();
        let n = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), n);
        for raised in pauc_traits::component_ron::code::ALL {
            assert!(super::find(raised).is_some(), "{raised} is not explained");
        }
    }
}
