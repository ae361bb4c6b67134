// What the page shows, in the language that ComfyUI is set to. The English sentence is the key of its
// translations, which are in locales/<language>/main.json; `python docs/locales.py` collects the sentences.

const GROUP = "longlive"; // of main.json
let translations = {};

/** Use these translations: { English sentence: sentence }. */
export function setTexts(texts) {
  translations = texts;
}

/** Fetch the translations from the server; what has none stays English. */
export async function loadTexts(app, api) {
  try {
    const languages = await (await api.fetchApi("/i18n")).json();
    setTexts(languages[app.ui.settings.getSettingValue("Comfy.Locale")]?.[GROUP] ?? {});
  } catch (error) {
    console.warn(`LongLive: no translations, the texts are English: ${error.message}`);
  }
}

/** A sentence in the page's language, its `{names}` replaced by values. */
export function t(sentence, values = {}) {
  const translated = translations[sentence] || sentence;
  return translated.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}
