"""Settings of property tests."""

import hypothesis

# A busy machine takes its time: no example has a deadline.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")
