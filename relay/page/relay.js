// Streams of a relay, for any page.
