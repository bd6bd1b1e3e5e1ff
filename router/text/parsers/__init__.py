"""Parsers of what a model answers in a chat: reasoning, content and tool calls, as it comes.

A model writes all three into one text, with tags of its own. Each parser here takes that text in
pieces of any size and gives the same result however it is split. Nothing a model writes is lost or
given twice, except the tags and the white space next to them, which are layout. What is held back
is bounded, and so is the time per character, since a model can be made to say anything.

transformers' `parse_response` is not used: its patterns come with the model and run without a bound
on time, and it gives a tool call only when the call is complete.
"""
