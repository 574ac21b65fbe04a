"""What a decode step needs that reads only some pages of what is kept: summaries of pages, and a choice by them."""
