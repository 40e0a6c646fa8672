//! Trouble that lasts is one event: it is said once, however often it is met.

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    said: Option<String>,
}

impl Trouble {
    /// Warns, unless this is what was said last; whether it is news.
    pub fn say(&mut self, text: String) -> bool {
        let news = self.said.as_ref() != Some(&text);
        if news {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("{text}");
        }
        self.said = Some(text);
        news
    }

    /// The next trouble is news, even if it is of the same kind.
    pub fn is_over(&mut self) {
        self.said = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_trouble_is_news_once() {
        let mut trouble = Trouble::default();
        assert!(trouble.say("one".into()) && !trouble.say("one".into()));
        assert!(trouble.say("other".into()) && trouble.say("one".into()));
        trouble.is_over();
        assert!(trouble.say("one".into()));
    }
}
