"""The exported encoders and what they read: towers of LARP, BCL's matcher, captions, fields."""
