"""EmojiScenes: the embedded world, its art, its scenes and the training of its model."""
