"""What Schemathesis sends as sound: a hook module, named in the configuration that test_service_schemathesis writes."""

import schemathesis
from hypothesis import strategies as st
from service_uploads import ogg, tone

CLIPS = [ogg(tone(1.1, hertz, seed)) for seed, hertz in enumerate((220.0, 330.0, 440.0))]
SOUNDS = st.one_of(
    st.sampled_from(CLIPS),
    st.sampled_from(CLIPS),
    st.binary(max_size=200),
    st.builds(lambda clip, end: clip[:end], st.sampled_from(CLIPS), st.integers(0, 2000)),
)

schemathesis.openapi.media_type("audio/ogg", SOUNDS)
schemathesis.openapi.media_type("application/octet-stream", SOUNDS)
