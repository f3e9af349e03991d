"""Small phantom studies with known lesions, and the generator that writes them (sample_data.generate)."""
