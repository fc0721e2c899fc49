//! How many copies the files of a folder want: `copies`.

use argh::FromArgs;
use miniserde::json::{Number, Value};

use super::ask::{Cell, CliError, Fields, Method, object};
use super::files::wire_name;
use super::{Context, Word, show};
use crate::config::COPIES_MAX;
use crate::files::unix::from_wire;

/// show or set how many copies the files of a folder have
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "copies",
    help_triggers("-h", "--help"),
    note = "Without a folder: the number for all files, and the folders that have one of their own. A folder's number holds for all in \
            it, down to the next folder that has one. This cell's own copy counts: 2 is here and with one peer, 1 is on this cell \
            only."
)]
pub struct Copies {
    /// a folder in GroveHome, and a number from 1 to 20 or `default`, which takes its number back
    #[argh(positional, arg_name = "folder number")]
    words: Vec<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

/// 0 stands for no number of its own.
fn read_number(word: &Word) -> Result<u64, CliError> {
    let text = word.text()?;
    match text.parse() {
        _ if text == "default" => Ok(0),
        Ok(copies @ 1..=COPIES_MAX) => Ok(copies),
        _ => Err(CliError::Usage(format!("copies are a number from 1 to {COPIES_MAX}, or `default`"))),
    }
}

impl Copies {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let (folder, number) = match &self.words[..] {
            [] => (None, None),
            [folder] => (Some(wire_name(context, folder)?), None),
            [folder, number] => (Some(wire_name(context, folder)?), Some(read_number(number)?)),
            _ => {
                return Err(CliError::Usage(
                    "name one folder and one number: `grove copies FOLDER N`".to_owned(),
                ));
            }
        };
        let mut cell = context.cell()?;
        self.with(context, &mut *cell, folder, number)
    }

    fn with(
        &self,
        context: &mut Context<'_>,
        cell: &mut dyn Cell,
        folder: Option<String>,
        number: Option<u64>,
    ) -> Result<(), CliError> {
        let has_folder = folder.is_some();
        let answer = match (folder, number) {
            (Some(path), Some(number)) => {
                let number = Value::Number(Number::U64(number));
                let body = object([("path", Value::String(path)), ("copies", number)]);
                cell.ask(Method::Post, "/copies", &[], Some(body))?
            }
            (Some(path), None) => cell.ask(Method::Get, "/file", &[("path", path.into_bytes())], None)?,
            (None, _) => cell.ask(Method::Get, "/copies", &[], None)?,
        };
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        let text = match has_folder {
            true => told(answer.fields, number.is_some()),
            false => all(answer.fields),
        };
        context.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

fn name_of(path: &str) -> String {
    show::name(&from_wire(path))
}

fn all(mut fields: Fields) -> String {
    let usual = fields.number("copies");
    let mut text = format!(
        "Files have {}, this cell's own among them; \"copies\" in config.json says so.\n",
        show::of(usual, "copy", "copies")
    );
    let folders = fields.list("folders");
    if folders.is_empty() {
        text.push_str("No folder has a number of its own; `grove copies FOLDER N` gives it one.\n");
        return text;
    }
    let row = |folder: &Fields| {
        let only = if folder.number("copies") == 1 { "on this cell only" } else { "" };
        vec![name_of(folder.text("path")), show::count(folder.number("copies")), only.to_owned()]
    };
    let mut rows = vec![["FOLDER", "COPIES", ""].map(str::to_owned).to_vec()];
    rows.extend(folders.iter().map(row));
    text.push_str(&show::table(&rows, &[1]));
    if !fields.is("counted") {
        text.push_str("A change is still being worked in.\n");
    }
    text
}

/// What a folder or file has, and after a change what comes of it.
fn told(mut fields: Fields, is_set: bool) -> String {
    let path = name_of(fields.text("path"));
    let cells = fields.some("cells");
    let Some(wanted) = fields.part("wanted") else { return String::new() };
    let copies = wanted.number("copies");
    let by = match wanted.text("by") {
        _ if wanted.is("own") => "its own number".to_owned(),
        "" => "as all files".to_owned(),
        by => format!("as {} says", name_of(by)),
    };
    let mut text = format!("{path}: {}, {by}.\n", show::of(copies, "copy", "copies"));
    if copies == 1 {
        text.push_str("That is on this cell only: if its disk dies, these files are gone.\n");
    }
    if !is_set {
        return text;
    }
    match cells {
        Some(cells) if copies > cells => text.push_str(&format!(
            "This fleet has {}, so some copies stay missing until another peer comes; `grove invite` brings one in.\n",
            show::of(cells, "cell", "cells")
        )),
        _ => text.push_str(
            "Missing copies are made now. Copies too many go into the trash of their holders, which keep them for 14 more days, and \
             what other files share stays.\n",
        ),
    }
    text.push_str("`grove placement` tells how far it is.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ask::Answer;
    use crate::cli::testing::Setup;

    const SET: &str =
        r#"{"path":"b\u001b[2J","wanted":{"copies":1,"own":true,"by":"b","usual":2},"cells":3}"#;

    #[test]
    fn a_number_is_set_taken_back_and_told() {
        let setup = Setup::new();
        setup.fake.answer("POST /copies", SET);
        let told = setup.grove("copies b 1", "");
        assert!(told.out.contains("1 copy, its own number.\nThat is on this cell only"), "{told:?}");
        assert!(told.out.contains("14 more days") && !told.out.contains('\u{1b}'), "{told:?}");
        assert_eq!(setup.grove("copies b default", "").code, 0);
        setup
            .fake
            .answer("GET /file", r#"{"path":"a/x","wanted":{"copies":3,"own":false,"by":"a","usual":2}}"#);
        assert_eq!(setup.grove("copies a/x", "").out, "a/x: 3 copies, as a says.\n");
        let asked = setup.fake.told.borrow().clone();
        assert_eq!(
            asked,
            [
                r#"POST /copies {"copies":1,"path":"b"}"#,
                r#"POST /copies {"copies":0,"path":"b"}"#,
                "GET /file path=a/x"
            ]
        );
    }

    #[test]
    fn more_copies_than_cells_are_said_to_be_missing() {
        let wanted = r#"{"path":"a","wanted":{"copies":4,"own":true,"by":"a","usual":2},"cells":3}"#;
        let text = told(Answer::read(wanted.into()).unwrap().fields, true);
        assert!(text.contains("This fleet has 3 cells, so some copies stay missing"), "{text}");
    }

    #[test]
    fn all_numbers_are_a_table() {
        let setup = Setup::new();
        setup.fake.answer("GET /copies", r#"{"copies":2,"cells":3,"folders":[],"counted":true}"#);
        assert!(setup.grove("copies", "").out.contains("No folder has a number of its own"));
        setup.fake.answer(
            "GET /copies",
            r#"{"copies":2,"cells":3,"folders":[{"path":"a","copies":3},{"path":"b","copies":1}],"counted":false}"#,
        );
        let text = setup.grove("copies", "").out;
        assert!(text.starts_with("Files have 2 copies, this cell's own among them"), "{text}");
        assert!(text.contains("on this cell only") && text.contains("still being worked in"), "{text}");
    }

    #[test]
    fn what_is_no_number_of_copies_is_said_before_the_cell_is_asked() {
        let setup = Setup::new();
        for words in ["copies a 0", "copies a 21", "copies a many", "copies a -1", "copies a 1 2"] {
            assert_eq!(setup.grove(words, "").code, 2, "{words}");
        }
        assert!(setup.fake.told.borrow().is_empty());
    }
}
