//! A tiny typed reader over one TOML table: each field is taken once, by name and type, and what is left over is unknown.

use std::{cell::RefCell, collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Problem, units};

/// What is wrong so far. Shared by the readers of all sections.
pub(super) struct Findings {
    line_starts: Vec<usize>,
    found: RefCell<Vec<Found>>,
}

pub(super) struct Found {
    pub(super) problem: Problem,
    /// About something that isn't there, rather than about what is.
    pub(super) missing: bool,
}

impl Findings {
    pub(super) fn new(text: &str) -> Findings {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Findings { line_starts, found: RefCell::default() }
    }

    /// The line, from 1, that holds a byte of the text.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(super) fn into_found(self) -> Vec<Found> {
        self.found.into_inner()
    }

    fn add(&self, line: usize, what: String, instead: String, missing: bool) {
        self.found.borrow_mut().push(Found { problem: Problem { line, what, instead }, missing });
    }
}

/// A section's settings and where its fields stand.
pub(super) struct Placed<T> {
    pub(super) value: T,
    fields: Fields,
}

struct Fields {
    line: usize,
    /// The line of each field that is there, and whether its value is good.
    there: BTreeMap<&'static str, (usize, bool)>,
}

impl<T> Placed<T> {
    /// The line of a field, or of the section when it is not there.
    pub(super) fn line(&self, field: &str) -> usize {
        self.fields.there.get(field).map_or(self.fields.line, |(line, _)| *line)
    }

    /// Whether the field is there, good or not.
    pub(super) fn is_there(&self, field: &str) -> bool {
        self.fields.there.contains_key(field)
    }

    /// Whether the field is there with a value that is good by itself.
    pub(super) fn has(&self, field: &str) -> bool {
        self.fields.there.get(field).is_some_and(|(_, good)| *good)
    }
}

pub(super) struct Section<'f, 'i> {
    findings: &'f Findings,
    /// As it is written: `[server]`, `[[tier]]`.
    head: &'static str,
    table: DeTable<'i>,
    fields: Fields,
    known: Vec<&'static str>,
}

impl<'f, 'i> Section<'f, 'i> {
    pub(super) fn new(findings: &'f Findings, head: &'static str, line: usize, table: DeTable<'i>) -> Section<'f, 'i> {
        Section { findings, head, table, fields: Fields { line, there: BTreeMap::new() }, known: Vec::new() }
    }

    /// Ends the section: what was not taken is unknown.
    pub(super) fn finish<T>(self, value: T) -> Placed<T> {
        for (key, _) in &self.table {
            let line = self.findings.line(key.span().start);
            let what = format!("{} has no '{}'", self.head, key.get_ref().escape_debug());
            self.findings.add(line, what, self.suggestion(key.get_ref()), false);
        }
        Placed { value, fields: self.fields }
    }

    fn suggestion(&self, misspelt: &str) -> String {
        let nearest = self.known.iter().map(|known| (edit_distance(misspelt, known), *known)).min();
        match nearest {
            Some((distance, known)) if distance <= 1 + known.len() / 4 => known.to_owned(),
            _ => format!("one of {}", self.known.join(", ")),
        }
    }

    fn take(&mut self, field: &'static str) -> Option<(usize, DeValue<'i>)> {
        self.known.push(field);
        let (key, value) = self.table.remove_entry(field)?;
        let line = self.findings.line(key.span().start);
        self.fields.there.insert(field, (line, true));
        Some((line, value.into_inner()))
    }

    /// Whether the field is there, good or not.
    pub(super) fn is_there(&self, field: &str) -> bool {
        self.fields.there.contains_key(field)
    }

    /// Says that a field that is there is wrong.
    pub(super) fn refuse(&mut self, field: &'static str, what: impl Display, instead: impl Into<String>) {
        let line = self.fields.there.get(field).map_or(self.fields.line, |(line, _)| *line);
        self.fields.there.insert(field, (line, false));
        self.findings.add(line, format!("{} {field}: {what}", self.head), instead.into(), false);
    }

    /// Says that something that has to be there is not.
    pub(super) fn lacks(&self, what: &str, example: &str) {
        self.findings.add(self.fields.line, format!("{} lacks {what}", self.head), example.to_owned(), true);
    }

    /// A text that `parse` accepts. `example` is the right part of such an assignment.
    pub(super) fn text<T>(
        &mut self,
        field: &'static str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (_, value) = self.take(field)?;
        let parsed = match &value {
            DeValue::String(text) => parse(text),
            other => Err(format!("it is {}, and has to be a text", type_name(other))),
        };
        parsed.map_err(|what| self.refuse(field, what, format!("{field} = {example}"))).ok()
    }

    /// A text that has to be there.
    pub(super) fn needed<T>(
        &mut self,
        field: &'static str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.table.contains_key(field) {
            self.known.push(field);
            self.lacks(&format!("'{field}'"), &format!("{field} = {example}"));
            return None;
        }
        self.text(field, example, parse)
    }

    /// A text that has to be there, or in its place a list of texts, which `several` accepts.
    pub(super) fn needed_or_list<T>(
        &mut self,
        field: &'static str,
        example: &str,
        one: impl FnOnce(&str) -> Result<T, String>,
        several: impl FnOnce(Vec<&str>) -> Result<T, String>,
    ) -> Option<T> {
        let Some((_, value)) = self.take(field) else {
            self.lacks(&format!("'{field}'"), &format!("{field} = {example}"));
            return None;
        };
        let parsed = match &value {
            DeValue::String(text) => one(text),
            DeValue::Array(items) => {
                let texts: Result<Vec<&str>, String> = items
                    .iter()
                    .map(|item| match item.get_ref() {
                        DeValue::String(text) => Ok(text.as_ref()),
                        other => Err(format!("it holds {}, and has to hold texts", type_name(other))),
                    })
                    .collect();
                texts.and_then(several)
            }
            other => Err(format!("it is {}, and has to be a text or a list of them", type_name(other))),
        };
        parsed.map_err(|what| self.refuse(field, what, format!("{field} = {example}"))).ok()
    }

    /// A list of texts, at least one of them, that has to be there.
    pub(super) fn needed_texts(
        &mut self,
        field: &'static str,
        example: &str,
        parse: impl Fn(&str) -> Result<String, String>,
    ) -> Option<Vec<String>> {
        let Some((_, value)) = self.take(field) else {
            self.lacks(&format!("'{field}'"), &format!("{field} = {example}"));
            return None;
        };
        let parsed = match &value {
            DeValue::Array(items) if items.is_empty() => Err("it is empty".to_owned()),
            DeValue::Array(items) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => parse(text),
                    other => Err(format!("it holds {}, and has to hold texts", type_name(other))),
                })
                .collect(),
            other => Err(format!("it is {}, and has to be a list", type_name(other))),
        };
        parsed.map_err(|what: String| self.refuse(field, what, format!("{field} = {example}"))).ok()
    }

    pub(super) fn duration(&mut self, field: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let show = |value: Duration| format!("\"{}\"", units::show_duration(value));
        self.text(field, &span(&range, show), |text| {
            units::duration(text).and_then(|value| within(value, &range, show))
        })
    }

    pub(super) fn size(&mut self, field: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let show = |value: u64| format!("\"{}\"", units::show_size(value));
        self.text(field, &span(&range, show), |text| units::size(text).and_then(|value| within(value, &range, show)))
    }

    pub(super) fn number<T: TryFrom<u64>>(&mut self, field: &'static str, range: RangeInclusive<u64>) -> Option<T> {
        let (_, value) = self.take(field)?;
        let parsed = match &value {
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => match u64::try_from(number) {
                    Ok(number) => within(number, &range, |value| value.to_string()),
                    Err(_) => Err(outside(number, range.start(), range.end())),
                },
                Err(_) => Err("it is not a whole number of 64 bits".to_owned()),
            },
            other => Err(format!("it is {}, and has to be a whole number", type_name(other))),
        };
        let fits = parsed.and_then(|number| T::try_from(number).map_err(|_| "it is too large".to_owned()));
        fits.map_err(|what| self.refuse(field, what, format!("{field} = {}", span(&range, |v| v.to_string())))).ok()
    }

    pub(super) fn share(&mut self, field: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let (_, value) = self.take(field)?;
        let parsed = match &value {
            DeValue::Float(number) => number.as_str().parse::<f64>().map_err(|_| "it is not a number".to_owned()),
            DeValue::Integer(number) if number.as_str() == "1" => Ok(1.0),
            other => Err(format!("it is {}, and has to be a share such as 0.05", type_name(other))),
        };
        let fits = parsed.and_then(|share| within(share, &range, |value| value.to_string()));
        fits.map_err(|what| self.refuse(field, what, format!("{field} = {}", span(&range, |v| v.to_string())))).ok()
    }

    /// The section `[field]` of a file.
    pub(super) fn section(&mut self, field: &'static str, head: &'static str) -> Option<Section<'f, 'i>> {
        let (line, value) = self.take(field)?;
        match value {
            DeValue::Table(table) => Some(Section::new(self.findings, head, line, table)),
            other => {
                self.refuse(field, format!("it is {}, and has to be a section", type_name(&other)), head);
                None
            }
        }
    }

    /// The sections `[[field]]` of a file.
    pub(super) fn sections(&mut self, field: &'static str, head: &'static str) -> Vec<Section<'f, 'i>> {
        let findings = self.findings;
        let Some((_, value)) = self.take(field) else { return Vec::new() };
        let DeValue::Array(items) = value else {
            self.refuse(field, format!("it is {}, and there may be several", type_name(&value)), head);
            return Vec::new();
        };
        let tables = items.into_iter().map(|item: Spanned<DeValue<'i>>| {
            let line = findings.line(item.span().start);
            match item.into_inner() {
                DeValue::Table(table) => Some(Section::new(findings, head, line, table)),
                _ => None,
            }
        });
        let tables: Option<Vec<_>> = tables.collect();
        tables.unwrap_or_else(|| {
            self.refuse(field, "it holds something else than sections", head);
            Vec::new()
        })
    }
}

fn within<T: PartialOrd + Copy>(value: T, range: &RangeInclusive<T>, show: impl Fn(T) -> String) -> Result<T, String> {
    if range.contains(&value) { Ok(value) } else { Err(outside(show(value), show(*range.start()), show(*range.end()))) }
}

fn outside(value: impl Display, from: impl Display, to: impl Display) -> String {
    format!("{value} is not between {from} and {to}")
}

fn span<T: Copy>(range: &RangeInclusive<T>, show: impl Fn(T) -> String) -> String {
    format!("{} to {}", show(*range.start()), show(*range.end()))
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// How many letters must be added, removed or changed to get from one to the other (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn distances_count_single_letters() {
        assert_eq!(edit_distance("listen", "listen"), 0);
        assert_eq!(edit_distance("lisen", "listen"), 1);
        assert_eq!(edit_distance("lisetn", "listen"), 2);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
