//! Arguments whose definition is built only if they are read.

use clap::{ArgMatches, Args, Command, FromArgMatches, Id, Subcommand};

/// The arguments of a verb, defined when the verb is parsed or its help is printed. To define those of all verbs takes
/// longer than anything else that a short command does.
#[derive(Debug)]
pub struct Deferred<T>(pub T);

impl<T: FromArgMatches> FromArgMatches for Deferred<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Deferred)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Deferred<T> {
    fn group_id() -> Option<Id> {
        T::group_id()
    }

    fn augment_args(verb: Command) -> Command {
        verb.defer(|verb| with_inherited_last(verb, T::augment_args))
    }

    fn augment_args_for_update(verb: Command) -> Command {
        verb.defer(|verb| with_inherited_last(verb, T::augment_args_for_update))
    }
}

impl<T: Subcommand> Subcommand for Deferred<T> {
    fn augment_subcommands(verb: Command) -> Command {
        verb.defer(T::augment_subcommands)
    }

    fn augment_subcommands_for_update(verb: Command) -> Command {
        verb.defer(T::augment_subcommands_for_update)
    }

    fn has_subcommand(name: &str) -> bool {
        T::has_subcommand(name)
    }
}

/// Adds arguments before those that the verb has from the program, so that help texts show them in this order.
fn with_inherited_last(verb: Command, add: fn(Command) -> Command) -> Command {
    let inherited: Vec<Id> = verb.get_arguments().map(|argument| argument.get_id().clone()).collect();
    // `mut_arg` moves an argument to the end.
    inherited.iter().fold(add(verb), |verb, id| verb.mut_arg(id, |argument| argument))
}
