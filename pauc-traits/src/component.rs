//! The macro that declares a component.

/// Declares a component: its struct, its recipe syntax, its help text and its registration.
///
/// ```text
/// component! {
///     /// Summary in one line.
///     ///
///     /// Formula, `# Shapes`, source, chance level.
///     pub struct MyLoss: ContrastiveLoss {
///         /// What this field means.
///         pub temperature: Scheduled<Positive> = Positive::lit(0.2).into(),
///         /// A field without a default is required.
///         pub sizes: Vec<Count>,
///         /// Recipes are written without this field while it has its default.
///         #[added_in("0.3")]
///         pub margin: NonNegative = NonNegative::lit(0.0),
///     }
/// }
/// ```
///
/// A released component gets new fields with `#[added_in("VERSION")]`. While such a field has its default, a recipe that
/// is written with all defaults does not show it. Recipes of earlier versions keep their text, and so their hash.
/// Such a default must never change.
///
/// The struct gets `Clone`, `Debug`, `Serialize` and a `Deserialize` that rejects unknown and duplicate
/// fields and fills in defaults. Rust code gets the same defaults: `Default` if every field has one,
/// otherwise `new`, which takes the required fields in order. The word after the colon is the kind under
/// which the struct is registered: `Dataset`, `Augmentation`, `Encoder`, `Clusterer`, `ContrastiveLoss`,
/// `Regularizer`, `Optimizer` or `Probe`. The struct then has to implement the trait of that kind. Without
/// the colon it is a plain section of a recipe.
#[macro_export]
macro_rules! component {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident $(: $kind:ident)? {
            $(
                $(#[doc = $fdoc:literal])*
                $(#[added_in($since:literal)])?
                pub $field:ident : $ty:ty $(= $default:expr)?
            ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $( $(#[doc = $fdoc])* pub $field: $ty, )*
        }

        // Not derived: derived code would refer to the crate as `pauc_traits`, a name that a crate which
        // depends only on `pauc` does not have.
        impl $crate::private::serde::Serialize for $name {
            fn serialize<S: $crate::private::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::core::result::Result<S::Ok, S::Error> {
                use $crate::private::serde::ser::SerializeStruct;
                #[allow(unused_mut)]
                let mut fields = serializer.serialize_struct(stringify!($name), Self::FIELDS.len())?;
                $( $crate::component!(@write fields self $field $([added $since])? $ty $(, $default)?); )*
                fields.end()
            }
        }

        impl $name {
            /// The documentation of the fields, in declaration order.
            pub const FIELDS: &'static [$crate::registry::Field] = &[
                $( $crate::registry::Field {
                    name: stringify!($field),
                    ty: stringify!($ty),
                    doc: concat!($($fdoc, "\n",)*),
                    default: $crate::component!(@shown $ty $(, $default)?),
                }, )*
            ];
        }

        $crate::component!(@construct $name [] [] $($field: $ty $(= $default)?,)*);

        impl<'de> $crate::private::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::private::serde::Deserializer<'de>>(d: D) -> ::core::result::Result<Self, D::Error> {
                use $crate::component_ron::{OneOf, Problem};
                struct Fields;
                impl<'de> $crate::private::serde::de::Visitor<'de> for Fields {
                    type Value = $name;
                    fn expecting(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                        f.write_str(concat!("the fields of `", stringify!($name), "`"))
                    }
                    #[allow(unused_mut, unused_variables)]
                    fn visit_map<A: $crate::private::serde::de::MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> ::core::result::Result<$name, A::Error> {
                        const OWNER: &str = stringify!($name);
                        const KNOWN: &[&str] = &[$(stringify!($field)),*];
                        $( let mut $field: Option<$ty> = None; )*
                        let unknown = |name: &str| {
                            (!KNOWN.contains(&name)).then(|| Problem::unknown_field(name, OWNER, KNOWN))
                        };
                        while let Some(key) = map.next_key_seed(OneOf { expecting: "a field name", unknown: &unknown })? {
                            match key.as_str() {
                                $( stringify!($field) => {
                                    if $field.is_some() {
                                        return Err(Problem::duplicate_field(stringify!($field), OWNER).raise());
                                    }
                                    $field = Some(map.next_value::<$ty>()?);
                                } )*
                                _ => return Err(Problem::unknown_field(&key, OWNER, KNOWN).raise()),
                            }
                        }
                        Ok($name {
                            $( $field: match $field {
                                Some(value) => value,
                                None => $crate::component!(@missing $field, OWNER $(, $default)?),
                            }, )*
                        })
                    }
                }
                d.deserialize_struct(stringify!($name), &[$(stringify!($field)),*], Fields)
            }
        }

        $crate::component!(@submit $name ($($doc)*) $($kind)?);
    };

    // Sorts the fields into required fields and fields with a default, one by one.
    (@construct $name:ident [$($required:tt)*] [$($set:tt)*] $field:ident : $ty:ty = $default:expr, $($rest:tt)*) => {
        $crate::component!(@construct $name [$($required)*] [$($set)* $field = $default,] $($rest)*);
    };
    (@construct $name:ident [$($required:tt)*] [$($set:tt)*] $field:ident : $ty:ty, $($rest:tt)*) => {
        $crate::component!(@construct $name [$($required)* $field: $ty,] [$($set)*] $($rest)*);
    };
    (@construct $name:ident [] [$($field:ident = $default:expr,)*]) => {
        impl ::core::default::Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }
    };
    (@construct $name:ident [$($required:ident : $ty:ty,)+] [$($field:ident = $default:expr,)*]) => {
        impl $name {
            /// Takes the required fields in order; every other field has its default.
            // Recipes do not use it, so it may be unused in a crate.
            #[allow(dead_code)]
            pub fn new($($required: $ty),+) -> Self {
                $name { $($required,)+ $($field: $default,)* }
            }
        }
    };

    (@write $fields:ident $self:ident $field:ident [added $since:literal] $ty:ty, $default:expr) => {
        let default: $ty = $default;
        if !$crate::component_ron::are_written_alike(&$self.$field, &default) {
            $fields.serialize_field(stringify!($field), &$self.$field)?;
        }
    };
    (@write $fields:ident $self:ident $field:ident $ty:ty $(, $default:expr)?) => {
        $fields.serialize_field(stringify!($field), &$self.$field)?;
    };

    (@shown $ty:ty) => { None };
    (@shown $ty:ty, $default:expr) => {
        Some(|| {
            let value: $ty = $default;
            $crate::component_ron::options().to_string(&value).unwrap_or_else(|e| format!("(cannot be shown: {e})"))
        })
    };
    (@missing $field:ident, $owner:ident) => {
        return Err(Problem::missing_field(stringify!($field), $owner).raise())
    };
    (@missing $field:ident, $owner:ident, $default:expr) => { $default };

    (@submit $name:ident ($($doc:literal)*)) => {};
    (@submit $name:ident ($($doc:literal)*) $kind:ident) => {
        $crate::private::inventory::submit! {
            $crate::registry::Entry::<$crate::registry::kind::$kind> {
                name: stringify!($name),
                doc: concat!($($doc, "\n",)*),
                fields: $name::FIELDS,
                origin: env!("CARGO_PKG_NAME"),
                build: |d| Ok(Box::new($crate::private::erased_serde::deserialize::<$name>(d)?)),
            }
        }
    };
}
