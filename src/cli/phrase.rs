//! Secrets for people: the recovery phrase and the password of the dashboard.

use argh::FromArgs;
use miniserde::json::Value;
use zeroize::Zeroizing;

use super::ask::{CliError, Holder, Method, Remote, holder, need_cell, object};
use super::{Context, ask::Cell, show, terminal};
use crate::dashboard::auth;

/// print the recovery card: 24 words that bring everything back, and where peers are
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "phrase",
    help_triggers("-h", "--help"),
    note = "Whoever has the 24 words can read all your files. Write them on paper and keep it away from this machine."
)]
pub struct Phrase {
    /// print nothing; note that the card is written down, which ends the reminders
    #[argh(switch)]
    kept: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Phrase {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.cell()?;
        if self.kept {
            let answer = cell.ask(Method::Post, "/phrase/kept", &[], Some("{}".to_owned()))?;
            match self.json {
                true => writeln!(context.out, "{}", answer.text)?,
                false => writeln!(context.out, "Noted: the recovery card is kept.")?,
            }
            return Ok(());
        }
        let answer = cell.ask(Method::Post, "/phrase", &[], Some("{}".to_owned()))?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        let fields = answer.fields;
        writeln!(context.out, "{}", show::text(fields.text("card").trim_end()))?;
        if !fields.text("qr_text").is_empty() {
            writeln!(context.out, "\n{}", show::text(fields.text("qr_text").trim_end_matches('\n')))?;
        }
        writeln!(context.out, "\nphrase: {}", show::text(fields.text("phrase")))?;
        context.out.flush()?;
        if fields.is("kept") || !context.terminals.input || !context.terminals.out {
            return Ok(());
        }
        writeln!(context.out)?;
        if terminal::ask_yes("Have you written it down?", context.input, context.out)? {
            cell.ask(Method::Post, "/phrase/kept", &[], Some("{}".to_owned()))?;
            writeln!(context.out, "Noted. Keep it away from this machine.")?;
        } else {
            writeln!(context.out, "Grove will remind you; `grove phrase --kept` ends that.")?;
        }
        Ok(())
    }
}

/// set the password of the dashboard; it is asked for twice, or read from a pipe. All who are signed in are signed out
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "password", help_triggers("-h", "--help"))]
pub struct Password {
    /// also switch the second factor off, if the phone that shows its codes is lost
    #[argh(switch)]
    no_totp: bool,
}

impl Password {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        need_cell(&context.paths)?;
        let password = match context.terminals.input {
            true => {
                let first = terminal::read_hidden("New password for the dashboard: ")?;
                let second = terminal::read_hidden("Once more: ")?;
                if *first != *second {
                    return Err(CliError::new("the two are not the same; nothing was changed", ""));
                }
                first
            }
            false => terminal::read_line(context.input)?.unwrap_or_else(|| Zeroizing::new(String::new())),
        };
        match holder(&context.paths.dir)? {
            // The running cell ends all sessions, too.
            Holder::Cell(port) => {
                let mut cell = Remote::open(&context.paths.dir, port)?;
                let body = object([("password", Value::String(password.to_string()))]);
                cell.ask(Method::Post, "/password", &[], Some(body))?;
                if self.no_totp {
                    // None is fine, too.
                    match cell.ask(Method::Post, "/totp/remove", &[], None) {
                        Err(CliError::Failed { message, .. }) if message.contains("no second factor") => {}
                        outcome => drop(outcome?),
                    }
                }
            }
            Holder::Nobody => {
                auth::set_password(&context.paths.dir.join("dashboard_auth"), &password, self.no_totp)
                    .map_err(|why| CliError::new(why.to_string(), why.hint()))?
            }
        }
        writeln!(context.out, "The dashboard has a new password.")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::Setup;
    use std::os::unix::fs::PermissionsExt;

    const CARD: &str = r#"{"phrase":"one two","card":"CARD\n\n  1. one\n","qr_text":"██\n","kept":false}"#;

    #[test]
    fn card_code_and_words_are_printed() {
        let setup = Setup::new();
        setup.fake.answer("POST /phrase", CARD);
        let told = setup.grove("phrase", "");
        assert_eq!((told.code, told.out.as_str()), (0, "CARD\n\n  1. one\n\n██\n\nphrase: one two\n"));
        assert_eq!(setup.grove("phrase --json", "").out, format!("{CARD}\n"));
    }

    #[test]
    fn person_is_asked_whether_it_is_written_down() {
        let mut setup = Setup::new();
        setup.terminals = crate::cli::Terminals { input: true, out: true, err: false };
        setup.fake.answer("POST /phrase", CARD);
        setup.fake.answer("POST /phrase/kept", "{}");
        assert!(setup.grove("phrase", "n\n").out.contains("remind"));
        assert_eq!(setup.fake.told.borrow().last().unwrap(), "POST /phrase {}");
        assert!(setup.grove("phrase", "y\n").out.contains("Noted"));
        assert_eq!(setup.fake.told.borrow().last().unwrap(), "POST /phrase/kept {}");
        assert_eq!(setup.grove("phrase --kept", "").code, 0);
        assert_eq!(setup.grove("phrase --kept --json", "").out, "{}\n");
    }

    #[test]
    fn password_is_stored_as_a_hash() {
        let setup = Setup::new();
        let told = setup.grove("password", "correct horse battery\n");
        assert_eq!(told.code, 0, "{told:?}");
        let path = setup.dir.path().join("state/dashboard_auth");
        let hash = std::fs::read_to_string(&path).unwrap();
        assert!(auth::check_password(hash.trim(), "correct horse battery"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let told = setup.grove("password", "short\n");
        assert!(told.code == 1 && told.err.contains("8 characters"), "{told:?}");
        assert_eq!(setup.grove("password", "").code, 1);
    }
}
