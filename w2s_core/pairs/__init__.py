"""Tools for pairs: is one any good (`w2s pair check`)?"""
