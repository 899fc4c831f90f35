"""`edgese listen`: a microphone, enhanced as it is heard, to a loudspeaker, headphones or a virtual microphone."""
