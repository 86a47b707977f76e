//! From a view as written to a [`View`], or to every mistake in it.

use std::collections::HashMap;
use std::time::Duration;

use datafusion::common::DFSchema;
use datafusion::sql::sqlparser::ast::Expr as Ast;

use super::expression::{Compiler, Expression};
use super::source::{DISTINCT_LIMIT, MeasureSource, ViewMistake, ViewPlace, ViewSource};
use super::syntax::{self, Mistake, Text};
use super::value::ValueType;
use super::{Aggregate, Dimension, Measure, MeasureForm, View};
use crate::dataset::Dataset;
use crate::fingerprint::Fingerprint;
use crate::measure::{self, Call, Kind, ResultType, Takes};
use crate::mistake::nearest;
use crate::plan::event_schema;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl View {
    /// Checks a view against its dataset and compiles it.
    pub fn compile(source: &ViewSource, dataset: &Dataset) -> Result<Self, Vec<ViewMistake>> {
        let schema = DFSchema::try_from(event_schema(dataset)).map_err(|error| {
            vec![ViewMistake {
                place: ViewPlace::Grain,
                at: None,
                what: format!("the dataset's fields make no table: {}", error.strip_backtrace()),
                instead: None,
            }]
        })?;
        let mut work = Work {
            compiler: Compiler::new(dataset, schema),
            limit: source.distinct_limit.unwrap_or(DISTINCT_LIMIT),
            mistakes: Vec::new(),
        };
        work.check_grain(source.grain);
        let filter = source
            .filter
            .as_deref()
            .and_then(|text| work.condition(text, ViewPlace::Filter));
        let dimensions: Vec<_> = source
            .dimensions
            .iter()
            .enumerate()
            .filter_map(|(index, dimension)| {
                let expression = work.dimension(&dimension.expr, index)?;
                Some(Dimension {
                    name: dimension.name.clone(),
                    expression,
                })
            })
            .collect();
        let measures = work.measures(&source.measures);
        work.check_limit(source.distinct_limit, &source.measures, &measures);
        work.check_columns(&dimensions, &measures);
        if !work.mistakes.is_empty() {
            return Err(work.mistakes);
        }
        let mut view = Self {
            name: source.name.clone(),
            dataset: dataset.name.clone(),
            grain: source.grain,
            filter,
            dimensions,
            measures,
            keep: None,
            chunk: dataset.chunk,
            fingerprint: Fingerprint::default(),
        };
        view.fingerprint = Fingerprint::of_view(&view, dataset);
        Ok(view)
    }
}

/// A compilation under way.
struct Work<'a> {
    compiler: Compiler<'a>,
    /// How many values a set may hold.
    limit: u64,
    mistakes: Vec<ViewMistake>,
}

impl Work<'_> {
    fn mistake(&mut self, place: ViewPlace, mistake: Mistake) {
        let Mistake { at, what, instead } = mistake;
        self.mistakes.push(ViewMistake {
            place,
            at,
            what,
            instead,
        });
    }

    fn check_grain(&mut self, grain: Duration) {
        let whole = grain.subsec_nanos() == 0 && grain.as_secs() > 0;
        if whole && DAY.as_secs().is_multiple_of(grain.as_secs()) {
            return;
        }
        let near = (1..=DAY.as_secs())
            .filter(|seconds| DAY.as_secs().is_multiple_of(*seconds))
            .min_by_key(|seconds| seconds.abs_diff(grain.as_secs()));
        let what = if whole {
            format!("a grain of {} does not divide a day", spoken(grain.as_secs()))
        } else {
            "a grain is at least 1 s, in whole seconds".to_owned()
        };
        let instead = near.map(|seconds| format!("\"{}\"", spoken(seconds)));
        self.mistake(
            ViewPlace::Grain,
            Mistake {
                at: None,
                what,
                instead,
            },
        );
    }

    fn expression(&mut self, text: &str, place: &ViewPlace) -> Option<Expression> {
        self.compiler
            .compile(text)
            .map_err(|mistakes| {
                mistakes
                    .into_iter()
                    .for_each(|mistake| self.mistake(place.clone(), mistake))
            })
            .ok()
    }

    fn condition(&mut self, text: &str, place: ViewPlace) -> Option<Expression> {
        let expression = self.expression(text, &place)?;
        if expression.value_type == ValueType::Bool {
            return Some(expression);
        }
        let what = format!("a condition is true or false, but this is {}", expression.value_type);
        let instead = Some("a comparison".to_owned());
        self.mistake(
            place,
            Mistake {
                at: Some(0),
                what,
                instead,
            },
        );
        None
    }

    fn dimension(&mut self, text: &str, index: usize) -> Option<Expression> {
        let place = ViewPlace::Dimension(index);
        let expression = self.expression(text, &place)?;
        let instead = match expression.value_type {
            ValueType::Float64 => "a whole number, CAST(floor(…) AS BIGINT), or a comparison",
            ValueType::Decimal { .. } => "a whole number, CAST(… AS BIGINT), or text, CAST(… AS VARCHAR)",
            _ => return Some(expression),
        };
        let what = format!("a dimension cannot be {}", expression.value_type);
        self.mistake(
            place,
            Mistake {
                at: Some(0),
                what,
                instead: Some(instead.to_owned()),
            },
        );
        None
    }

    fn measures(&mut self, sources: &[(String, MeasureSource)]) -> Vec<Measure> {
        let index: HashMap<_, _> = sources
            .iter()
            .enumerate()
            .map(|(index, (name, source))| (name.as_str(), (index, source)))
            .collect();
        let measures: Vec<_> = sources
            .iter()
            .filter_map(|(name, source)| {
                let form = match source {
                    MeasureSource::Aggregate { call, condition } => {
                        let condition = condition
                            .as_deref()
                            .map(|text| self.condition(text, ViewPlace::Condition(name.clone())));
                        let aggregate = self.aggregate(call, name)?;
                        MeasureForm::Aggregate(Aggregate {
                            condition: condition.flatten(),
                            ..aggregate
                        })
                    }
                    MeasureSource::Ratio { numerator, denominator } => {
                        let numerator = self.ratio_part(numerator, name, &index);
                        let denominator = self.ratio_part(denominator, name, &index);
                        MeasureForm::Ratio {
                            numerator: numerator?,
                            denominator: denominator?,
                        }
                    }
                };
                Some(Measure {
                    name: name.clone(),
                    form,
                })
            })
            .collect();
        if measures.len() == sources.len() {
            self.ratios_are_of_numbers(&measures);
        }
        measures
    }

    fn ratios_are_of_numbers(&mut self, measures: &[Measure]) {
        for measure in measures {
            let MeasureForm::Ratio { numerator, denominator } = measure.form else {
                continue;
            };
            for part in [numerator, denominator]
                .into_iter()
                .filter_map(|part| measures.get(part))
            {
                let MeasureForm::Aggregate(aggregate) = &part.form else {
                    continue;
                };
                let (number, is) = match aggregate.result_type() {
                    ResultType::Count => (true, "a number"),
                    ResultType::Value(value) => (value.is_number(), "no number"),
                    ResultType::Levels => (false, "a list of numbers"),
                };
                if !number {
                    let what = format!("`{}` is {is}, so it has no ratio", part.name);
                    let instead = Some("a ratio of counts, sums or averages".to_owned());
                    let place = ViewPlace::Ratio(measure.name.clone());
                    self.mistake(
                        place,
                        Mistake {
                            at: None,
                            what,
                            instead,
                        },
                    );
                }
            }
        }
    }

    fn ratio_part(&mut self, part: &str, of: &str, index: &HashMap<&str, (usize, &MeasureSource)>) -> Option<usize> {
        let (what, instead) = match index.get(part) {
            Some((index, MeasureSource::Aggregate { .. })) => return Some(*index),
            Some((_, MeasureSource::Ratio { .. })) => (
                format!("`{part}` is a ratio itself"),
                Some("a ratio of two aggregates".to_owned()),
            ),
            None => {
                let near = nearest(part, index.keys().copied()).map(|near| format!("`{near}`"));
                (format!("the view has no measure `{part}`"), near)
            }
        };
        self.mistake(
            ViewPlace::Ratio(of.to_owned()),
            Mistake {
                at: None,
                what,
                instead,
            },
        );
        None
    }

    fn aggregate(&mut self, call: &str, name: &str) -> Option<Aggregate> {
        self.try_aggregate(call)
            .map_err(|mistakes| {
                mistakes
                    .into_iter()
                    .for_each(|mistake| self.mistake(ViewPlace::Measure(name.to_owned()), mistake));
            })
            .ok()
    }

    fn try_aggregate(&self, call: &str) -> Result<Aggregate, Vec<Mistake>> {
        let text = Text(call);
        let ast = text.parse().map_err(|mistake| vec![mistake])?;
        let wrong = |what: String, instead: Option<String>| vec![text.mistake(&ast, what, instead)];
        let Ast::Function(function) = &ast else {
            let instead = format!("one of {}, such as \"sum({call})\"", measure::kind_names());
            return Err(wrong("a measure is a call of an aggregate".to_owned(), Some(instead)));
        };
        let kind_name = syntax::function_name(&function.name);
        let Some(kind) = measure::kind(&kind_name) else {
            let instead = match measure::meant(&kind_name) {
                Some(kind) => format!("{}()", kind.name),
                None => format!("one of {}", measure::kind_names()),
            };
            return Err(wrong(format!("there is no measure {kind_name}()"), Some(instead)));
        };
        if let Some(of) = syntax::counted_distinct(function) {
            let what = format!("{}(DISTINCT …) is a measure of its own", kind.name);
            return Err(wrong(what, Some(format!("\"distinct({of})\""))));
        }
        if function.filter.is_some() {
            let instead = format!("{{ measure = \"{}(…)\", where = \"…\" }}", kind.name);
            return Err(wrong(
                "a condition does not stand inside a measure".to_owned(),
                Some(instead),
            ));
        }
        let arguments = match function.args.to_string().as_str() {
            "(*)" => vec![],
            _ => syntax::arguments(function).map_err(|what| wrong(format!("{what} cannot be used here"), None))?,
        };
        let (argument, levels) = match (arguments.as_slice(), kind.takes) {
            ([], Takes::AtMostOne) => (None, vec![]),
            ([argument], Takes::AtMostOne | Takes::One) => (Some(self.argument(kind, text, argument)?), vec![]),
            ([argument, levels], Takes::OneAndLevels) => {
                let argument = self.argument(kind, text, argument);
                match (argument, syntax::levels(text, kind.name, levels)) {
                    (Ok(argument), Ok(levels)) => (Some(argument), levels),
                    (argument, levels) => {
                        let mistakes = argument.err().into_iter().flatten();
                        return Err(mistakes.chain(levels.err()).collect());
                    }
                }
            }
            (arguments, takes) => {
                let (wanted, instead) = match takes {
                    Takes::AtMostOne => (format!("at most one argument, not {}", arguments.len()), None),
                    Takes::One => (format!("one argument, not {}", arguments.len()), None),
                    Takes::OneAndLevels => {
                        let of = arguments.first().map_or_else(|| "…".to_owned(), ToString::to_string);
                        let instead = format!("\"{}({of}, [0.5, 0.95])\"", kind.name);
                        ("a value and one list of levels".to_owned(), Some(instead))
                    }
                };
                return Err(wrong(format!("{}() takes {wanted}", kind.name), instead));
            }
        };
        Ok(Aggregate {
            kind,
            call: Call {
                argument: argument.as_ref().map(|argument| argument.value_type),
                levels,
                limit: kind.keeps_sets.then_some(self.limit),
            },
            argument,
            condition: None,
        })
    }

    fn argument(&self, kind: &Kind, text: Text<'_>, part: &Ast) -> Result<Expression, Vec<Mistake>> {
        let argument = self.compiler.compile_part(text, part)?;
        kind.accepts(argument.value_type)
            .map_err(|what| vec![text.mistake(part, what, None)])?;
        Ok(argument)
    }

    /// A limit of sets that no set meets.
    fn check_limit(&mut self, limit: Option<u64>, sources: &[(String, MeasureSource)], measures: &[Measure]) {
        let keeps_sets = |measure: &Measure| match &measure.form {
            MeasureForm::Aggregate(aggregate) => aggregate.kind.keeps_sets,
            MeasureForm::Ratio { .. } => false,
        };
        // A measure that has a mistake may have been meant to.
        let all_known = measures.len() == sources.len();
        if limit.is_none() || !all_known || measures.iter().any(keeps_sets) {
            return;
        }
        self.mistake(
            ViewPlace::DistinctLimit,
            Mistake {
                at: None,
                what: "a limit for the sets of distinct(), but no measure of the view is one".to_owned(),
                instead: Some("leave it out".to_owned()),
            },
        );
    }

    /// Two columns of one name, in answers or in tables.
    fn check_columns(&mut self, dimensions: &[Dimension], measures: &[Measure]) {
        let mut taken: HashMap<String, String> = HashMap::new();
        for dimension in dimensions {
            taken.insert(dimension.name.clone(), format!("dimension `{}`", dimension.name));
        }
        for measure in measures {
            let mut columns = vec![measure.name.clone()];
            if let MeasureForm::Aggregate(aggregate) = &measure.form {
                columns.extend(aggregate.states().iter().map(|state| state.column(&measure.name)));
            }
            for column in columns {
                let owner = format!("measure `{}`", measure.name);
                if let Some(other) = taken.insert(column.clone(), owner) {
                    let what = format!("its column `{column}` is also {other}'s");
                    let instead = Some("another name".to_owned());
                    self.mistake(
                        ViewPlace::Measure(measure.name.clone()),
                        Mistake {
                            at: None,
                            what,
                            instead,
                        },
                    );
                }
            }
        }
    }
}

/// A number of seconds as definitions write it.
fn spoken(seconds: u64) -> String {
    match seconds {
        s if s.is_multiple_of(86_400) => format!("{}d", s / 86_400),
        s if s.is_multiple_of(3_600) => format!("{}h", s / 3_600),
        s if s.is_multiple_of(60) => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}
