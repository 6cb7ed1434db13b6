//! The codes of recipe errors and their explanations, as `explain E0103` prints them.

/// A code with its explanation.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Such as `E0103`.
    pub code: &'static str,
    /// A one-line title.
    pub title: &'static str,
    /// The cause and the remedy, with an example.
    pub text: &'static str,
}

macro_rules! codes {
    ($($code:literal $title:literal $text:literal)*) => {
        /// E01xx: reading the text. E02xx: rules across fields. E04xx: sweeps. E05xx: changes of a run. Terms' own rules have codes in
        /// [`pauc_losses::findings`].
        pub const CODES: &[Code] = &[$(Code { code: $code, title: $title, text: $text }),*];
    };
}

codes! {
    "E0101" "the text is not RON"
    "A bracket, comma or quote is missing or misplaced.\n\nA recipe is `Recipe(field: value, …)`; lists are written `[…]`, components `Name(field: value)`, text in double quotes; comments start with `//`."
    "E0102" "unknown name"
    "No component has this name, or an option does not have this value.\n\n`pauc-cli list` prints all components; `pauc-cli explain NAME` prints one. Names are written in CamelCase, as in `InfoNce(temperature: 0.2)`."
    "E0103" "unknown field"
    "The component or section has no field of this name.\n\nThe help line lists the fields that exist; `pauc-cli explain NAME` prints their meanings and defaults."
    "E0104" "missing field"
    "A field without a default must be written.\n\nExample: `Dbscan(radius: 0.5)`. No radius is right for all embeddings."
    "E0105" "field given twice"
    "A field may be given only once. Remove one of the two."
    "E0106" "a value of the wrong type or outside its range"
    "Temperatures must be greater than 0, probabilities and momenta between 0 and 1, counts at least 1. Integers are written without a decimal point.\n\nExample: `InfoNce(temperature: -1)` is an error."
    "E0107" "a `--set` path that does not exist"
    "`--set path=value` names a value by its path, such as `train.epochs=5` or `objective[0].term.temperature=0.1`; items of lists are counted from 0. A field that the recipe leaves out may be set; an item of a list must exist."
    "E0108" "the file of a recipe cannot be read"
    "The file is missing, not readable, or not text in UTF-8. The message has the cause. `check` continues with the other recipes."
    "E0201" "a term reads the queue, but there is none"
    "Terms such as `InfoNce(negatives: Queue)` compare queries with past keys. If the recipe has a momentum encoder and leaves `queue` out, its length follows the number of images; otherwise add `momentum_encoder: Ema(momentum: 0.99)`, or write `queue: 4096`."
    "E0202" "a momentum encoder is needed, but there is none"
    "Queues, and terms that read momentum keys, need a moving average of the encoder. Add `momentum_encoder: Ema(momentum: 0.99)`."
    "E0203" "a term reads prototypes, but there is no clusterer"
    "Prototype terms read the clusters of the training set. Add `clusterer: KMeans(k: [100, 250])`."
    "E0204" "class labels are needed, but the data has none"
    "Supervised terms, label clusterers and accuracy probes need labels. Use a labeled dataset, or remove the component."
    "E0205" "more prototypes than samples"
    "A clustering cannot have more prototypes than there are training samples. The message has both numbers; lower `k`."
    "E0206" "the queue does not fit"
    "A queue shorter than one batch would overwrite keys before they were read. A queue as long as the training set has each sample's own past key among its negatives; this is only a warning."
    "E0207" "the batch does not fit the data"
    "A batch cannot hold more samples than the training set; incomplete batches are dropped. Lower `train.batch`."
    "E0208" "the encoder does not accept these images"
    "The encoder's strides, channels or patches do not fit the images that the views produce. The message names the layer and the shapes. Change the crop size, or the encoder."
    "E0209" "too few views"
    "A term compares two views of each image, but the recipe makes fewer. Write `views: [(count: 2, ops: […])]`."
    "E0210" "nothing to train"
    "The objective is empty, or no term is active at the first step. At least one term must start at step 0; otherwise only weight decay would change the encoder."
    "E0211" "nothing uses the clusterer"
    "The recipe clusters the features, but no term or probe reads the prototypes: the time is wasted. A warning."
    "E0212" "a prototype term starts before there are prototypes"
    "Prototype terms wait for the first clustering (`clusterer.start`). A `from` before it has no effect. A warning."
    "E0213" "images of different sizes reach the encoder"
    "The views do not fix the size of the images. Begin them with `RandomResizedCrop(size: 32)`, or with `Resize` and `CenterCrop`."
    "E0214" "the data cannot be opened"
    "The recipe's data is missing or damaged, so rules that need its size were not checked. `check` warns; `run` stops with exit code 4."
    "E0215" "an accuracy probe has no test split"
    "kNN and linear probes train on the training split and are scored on the test split; this dataset has none."
    "E0216" "the predictor does not fit"
    "Predictions are compared with keys, which are the projector's outputs, so both must have the same width. A predictor that no term reads is a warning; terms such as `CosinePrediction` read predictions."
    "E0217" "the micro-batch does not fit the batch"
    "`train.micro_batch` is the number of images that pass through the network at once; it cannot exceed `train.batch`. With batch normalization, each micro-batch is normalized by its own mean and variance, as in data-parallel training, so the result is not that of the whole batch."
    "E0218" "`frozen` names an unknown part"
    "`frozen` lists parameters or parts of the encoder: `\"conv1\"` freezes `conv1.weight`, `\"layer1\"` everything below it. `pauc-cli explain recipe.ron` lists the layers."
    "E0219" "accumulated batches do not make a larger batch"
    "`train.accumulate: 4` steps the optimizer once after four batches, with the mean of their gradients. Each batch has only its own negatives, prototypes and batch statistics: contrastive terms do not see a batch four times as large. To train with a batch that does not fit into memory, write `batch: 1024, micro_batch: 256`: terms then see the whole batch, at the cost of a second forward pass. A warning."
    "E0220" "`lr_scale` names an unknown part"
    "`lr_scale` lists parameters or parts of the network: `\"encoder.layer1\"` is everything below it, `\"projector\"` the whole projector. Parameters of a term begin with the term's name. A part may be listed only once."
    "E0221" "probe settings that cannot work"
    "The settings of a probe are inconsistent, such as `LowShot` around a probe that reads no labels, or a grid without values. Without this check the probe would fail only when it first runs."
    "E0222" "a run needs more memory than there is"
    "The memory of a run is estimated from the recipe before anything is allocated. The message says how much it needs, what needs the most, and which value to lower; `pauc-cli explain recipe.ron` prints all parts. The estimate is a lower bound. Lower that value, or set another limit with `--memory 64GiB`."
    "E0223" "more steps than can be counted"
    "A run can have at most 2⁵³ steps. Lower `train.epochs`."
    "E0224" "a probe has too few images"
    "The split has too few images for the probe. Some probes compare pairs and need two images, retrieval needs two images of a class, and a clustering needs at least one image per cluster. The run warns when it reaches the probe, and continues without its metrics. A warning."
    "E0225" "weights were left out or adapted"
    "`encoder_weights` names a file with tensors that the encoder does not have, such as a classifier, or whose shapes were adapted: a first convolution for gray or RGB images, or positions for another number of patches. The message lists them. A warning."
    "E0226" "`layer_decay` needs an encoder whose layers have an order"
    "`layer_decay` lowers the learning rate from layer to layer. The encoder has to say how deep each of its parameters is (`Encoder::depths`). For other encoders, list factors in `lr_scale`."
    "E0227" "the shards do not fit the batch"
    "`train.shards` divides a batch into equal parts, so it has to divide `train.batch`. It is a power of two, because the gradients of the shards are summed in a binary tree."
    "E0228" "batch statistics cannot be synchronized"
    "With `train.batch_norm: Synced`, shards share the statistics of the whole batch, so it needs `train.shards`. All activations of a batch are kept until the backward pass, so it does not work with `micro_batch`."
    "E0401" "a sweep without values, or with lists of different lengths"
    "`over` lists paths with their values. With `combine: Zip`, the first run has the first value of every path, the second run the second: all lists must have the same length. `combine: Grid` combines every value with every other."
    "E0402" "random values without `combine: Random`"
    "`Uniform`, `LogUniform` and `Integers` are distributions; they need `combine: Random(runs: 20)`."
    "E0403" "one path given twice, or seeds among the values"
    "A path may be given only once, and not inside another one: a component and a field of it cannot both vary. Seeds are listed in `seeds`; runs that differ only in their seed are one row of the table, with mean and standard deviation."
    "E0404" "too many runs or resamples"
    "The lists of a grid multiply: five paths with ten values each make 100 000 combinations, and every seed trains each of them. List fewer values, or draw some of the combinations: `combine: Random(runs: 20)`. A bootstrap has at most 1 000 000 resamples."
    "E0405" "an arm without a name of its own, or a comparison with an arm that does not exist"
    "Arms are named variants of the recipe: `arms: [(name: \"pcl\", set: [\"objective[1].weight=1\"])]`. Names are those of tables and folders, so each arm needs its own. `compare: (to: \"pcl\")` names one of them."
    "E0406" "a choice by the test split"
    "`best` and `tune` choose values of a recipe. A setting chosen by its test accuracy looks better on the test split than it is. Choose by held-out training images instead: the probe `HeldOut(probe: Knn())` reports the metric `knn/cos/k20/t0.07/heldout`. `best: (metric: …, on_test: true)` chooses by the test split anyway, and the table says so."
    "E0407" "tuning with an unequal budget, or by nothing"
    "`tune: (trials: 8, over: …)` gives every arm the same number of different trials; `best` names the metric that chooses among them. Each arm needs at least as many combinations of values as trials, and the seeds of trials must not be among those of the results."
    "E0501" "a value that a run cannot change"
    "`resume --set` changes a run from one of its checkpoints on. The checkpoint holds the weights of these networks, this queue, these clusters and the moments of this optimizer, and its steps are batches of this size of this data. These cannot change in the middle of a run; learning rates, schedules, weights, temperatures, clipping, views of the same shape, probes and the number of epochs can. Start another run instead; `encoder_weights` starts it from the encoder of a checkpoint."
    "E0502" "the run would end before its checkpoint"
    "The changed recipe has no more steps than the run has taken at this checkpoint. Raise `train.epochs`, or continue from an earlier checkpoint with `--from`."
}

/// Returns all codes: of parsing, of rules across fields, and of the terms' own rules.
pub fn all() -> impl Iterator<Item = Code> {
    let of_terms = pauc_losses::findings::ALL.iter().map(|&(code, title, text)| Code { code, title, text });
    CODES.iter().copied().chain(of_terms)
}

/// Returns the explanation of a code.
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
