"""The paper's figure as a list of files: image encoder, prompt encoder, mask decoder, and the network they make."""
